"""The segmentation model: inference with the masks of all queries, and of few; a training step on boxes and masks.

Compared beforehand: logits, boxes and all masks; of a training step the losses of twins without dropout, on images
without padding, where all three compute the same loss. Stock's auxiliary loss changes its logits, so its twin goes
without.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cases import Bench, Case, Comparison, Contestant, Ready
from contestants import load_model, training_step
from inputs import labels, padded_batch, to

_LOSSES = ("loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice")
_NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
_NAMES = ("ours", "stock", "original")


def inference(few: int | None = None, **measured) -> Callable[[Bench], Comparison]:
    """A case of one image; with `few`, ours decodes the masks of that many queries alone, as a threshold would."""

    def make(bench: Bench) -> Comparison:
        size_hw = bench.pick(quick=(96, 128), cpu=(800, 1066), cuda=(800, 1066))
        pixels = padded_batch([size_hw])[0].to(bench.device)

        def contestant(name: str) -> Contestant:
            def prepare() -> Ready:
                model = load_model(name, bench, with_masks=True)
                arguments = {}
                if name == "ours":
                    model.fold_norms()  # as `hf-detr predict` and `evaluate` do
                    arguments = {"mask_top_k": few} if few else {}

                def work():
                    with torch.no_grad():
                        return model(pixel_values=pixels, **arguments)

                def answer() -> dict[str, Tensor]:
                    outputs = work()
                    masks = {} if arguments else {"masks": outputs.pred_masks}
                    return {"logits": outputs.logits, "boxes": outputs.pred_boxes, **masks}

                return Ready(work, answer)

            return Contestant(name, prepare)

        return Comparison([contestant(name) for name in _NAMES], images=1, most_rounds=5, weigh=True, **measured)

    return make


def step(bench: Bench) -> Comparison:
    """Two images with seven objects each, every package as it comes."""
    count, height, width = bench.pick(quick=(2, 64, 96), cpu=(2, 320, 416), cuda=(4, 800, 800))
    pixels = to(bench.device, padded_batch([(height, width)] * count)[0])
    targets = to(bench.device, _with_masks(labels([7] * count), height, width))

    def contestant(name: str) -> Contestant:
        def prepare() -> Ready:
            model = load_model(name, bench, with_masks=True, auxiliary_loss=True)

            def answer() -> dict[str, Tensor]:
                twin = load_model(name, bench, with_masks=True, auxiliary_loss=name != "stock", **_NO_DROPOUT).train()
                with torch.no_grad():
                    outputs = twin(pixel_values=pixels, labels=targets)
                return {"logits": outputs.logits, **{loss: outputs.loss_dict[loss] for loss in _LOSSES}}

            return Ready(training_step(model, lambda: model(pixel_values=pixels, labels=targets).loss), answer)

        return Contestant(name, prepare)

    return Comparison(
        [contestant(name) for name in _NAMES],
        images=count,
        most_rounds=5,
        weigh=True,
        notes="seven objects an image; stock and the original decode all 100 queries' masks, ours the matched ones'.",
    )


def _with_masks(of_boxes: list[dict[str, Tensor]], height: int, width: int) -> list[dict[str, Tensor]]:
    """And the ellipses in the boxes as masks (T, height, width)."""
    rows, columns = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    made = []
    for label in of_boxes:
        x, y, w, h = label["boxes"].T[:, :, None, None]
        inside = ((columns - x) / w).square() + ((rows[:, None] - y) / h).square() < 0.25
        made.append({**label, "masks": inside.to(torch.uint8)})
    return made


CASES = [
    Case(
        "masks_inference",
        "segmentation, R50, 1 x 3 x 800 x 1066, fp32, masks of all 100 queries, ours after fold_norms()",
        inference(),
        targets={"cpu": {"stock": 1.5}, "cuda": {"stock": 1.5}},
        memory_targets={"cpu": {"stock": 0.5}, "cuda": {"stock": 0.5}},
    ),
    Case(
        "masks_inference_few",
        "the same, ours with mask_top_k=20",
        inference(few=20, notes="the peers have no such choice; their masks of the other queries are left out later."),
        targets={"cpu": {"stock": 1.5}, "cuda": {"stock": 1.5}},
        memory_targets={"cpu": {"stock": 0.5}, "cuda": {"stock": 0.5}},
    ),
    Case(
        "masks_training_step",
        "segmentation, training step, R50, boxes and masks, fp32; CPU: batch 2 x 320 x 416; GPU: batch 4 x 800 x 800",
        step,
        targets={"cpu": {"stock": 1.8}, "cuda": {"stock": 1.8}},
        memory_targets={"cpu": {"stock": 0.5}, "cuda": {"stock": 0.5}},
    ),
]
