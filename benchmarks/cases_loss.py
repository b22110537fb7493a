"""Matching and loss alone, with their backward pass, on predictions of six decoder layers."""

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

from cases import Bench, Case, Comparison, Contestant, Ready
from hf_detr.loss import SetCriterion
from inputs import NUM_CLASSES, labels, to

_LAYERS, _QUERIES = 6, 100
_STOCK_CONFIG = SimpleNamespace(class_cost=1, bbox_cost=5, giou_cost=2, num_labels=NUM_CLASSES, eos_coefficient=0.1)
_STOCK_CONFIG.__dict__.update(auxiliary_loss=True, bbox_loss_coefficient=5, giou_loss_coefficient=2)
_STOCK_CONFIG.decoder_layers = _LAYERS


def _ours(logits: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
    return SetCriterion()(logits, boxes, targets)[0]


def _stock(logits: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
    return ForObjectDetectionLoss(logits[-1], targets, logits.device, boxes[-1], _STOCK_CONFIG, logits, boxes)[0]


def _original(bench: Bench) -> Callable[..., Tensor]:
    model = bench.original.build(bench.checkpoint, dropout=0.0).to(bench.device)
    # its table of weights follows the decoder's depth, which is less in a quick run
    parts = {part: model.criterion.weight_dict[part] for part in ("loss_ce", "loss_bbox", "loss_giou")}
    model.criterion.weight_dict.update(
        {f"{part}_{layer}": weight for part, weight in parts.items() for layer in range(_LAYERS - 1)}
    )

    def loss(logits: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
        outputs = [{"pred_logits": a, "pred_boxes": b} for a, b in zip(logits, boxes, strict=True)]
        return model.losses({**outputs[-1], "aux_outputs": outputs[:-1]}, targets)[0]

    return loss


def losses(batch_size: int, objects: int) -> Callable[[Bench], Comparison]:
    """A case of `batch_size` images with `objects` each."""

    def make(bench: Bench) -> Comparison:
        generator = torch.Generator().manual_seed(0)
        shape = (_LAYERS, 4 if bench.quick else batch_size, _QUERIES)
        logits = torch.randn(*shape, NUM_CLASSES + 1, generator=generator)
        centres, sides = torch.rand(*shape, 4, generator=generator).split(2, dim=-1)
        boxes = torch.cat((centres, 0.05 + 0.4 * sides), dim=-1)
        logits, boxes = (tensor.to(bench.device).requires_grad_() for tensor in (logits, boxes))
        targets = to(bench.device, labels([objects] * shape[1]))

        def contestant(name: str, prepare_loss: Callable[[], Callable[..., Tensor]]) -> Contestant:
            def prepare() -> Ready:
                loss_of = prepare_loss()

                def work() -> Tensor:
                    logits.grad = boxes.grad = None
                    loss = loss_of(logits, boxes, targets)
                    loss.backward()
                    return loss

                def answer() -> dict[str, Tensor]:
                    loss = work() / _LAYERS  # a loss of 30 in float32 has no more digits than a mean of 5
                    return {"loss": loss, "gradient of logits": logits.grad, "gradient of boxes": boxes.grad}

                return Ready(work, answer)

            return Contestant(name, prepare)

        peers = [contestant("stock", lambda: _stock), contestant("original", lambda: _original(bench))]
        return Comparison([contestant("ours", lambda: _ours), *peers], budget_s=20, most_rounds=100)

    return make


CASES = [
    Case(
        "loss_large",
        "loss and matching alone, 6 layers, batch 32, 40 objects, backward included",
        losses(batch_size=32, objects=40),
        targets={"cpu": {"stock": 20, "original": 20}, "cuda": {"stock": 10}},
    ),
    Case(
        "loss_small",
        "the same, batch 2, 7 objects",
        losses(batch_size=2, objects=7),
        targets={"cpu": {"stock": 2, "original": 2}, "cuda": {"stock": 3}},
    ),
]
