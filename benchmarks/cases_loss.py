"""Matching and loss alone, with their backward pass, on predictions of six decoder layers."""

from collections.abc import Callable

import torch
from torch import Tensor

from cases import Bench, Case, Comparison, Contestant, Ready
from inputs import NUM_CLASSES, labels
from works import loss_work

_LAYERS, _QUERIES = 6, 100


def _comparison(bench: Bench, batch_size: int, objects: int) -> Comparison:
    generator = torch.Generator().manual_seed(0)
    shape = (_LAYERS, batch_size, _QUERIES)
    logits = torch.randn(*shape, NUM_CLASSES + 1, generator=generator)
    boxes = torch.cat(
        (torch.rand(*shape, 2, generator=generator), 0.05 + 0.4 * torch.rand(*shape, 2, generator=generator)), dim=-1
    )
    logits, boxes = (tensor.to(bench.device).requires_grad_() for tensor in (logits, boxes))
    targets = [
        {name: value.to(bench.device) for name, value in label.items()} for label in labels([objects] * batch_size)
    ]

    def contestant(name: str, prepare_work: Callable[[], Callable[[], Tensor]]) -> Contestant:
        def prepare() -> Ready:
            work = prepare_work()

            def answer() -> dict[str, Tensor]:
                # a loss of 30 in float32 has no more digits than a mean of 5
                loss = work() / _LAYERS
                return {"loss": loss, "gradient of logits": logits.grad, "gradient of boxes": boxes.grad}

            return Ready(work, answer)

        return Contestant(name, prepare)

    def prepare_original():
        original = bench.original
        _, criterion = original.build(bench.checkpoint, bench.device)
        layers = range(_LAYERS - 1)
        # its table of weights follows the decoder's depth, which is less in the smoke test
        parts = ("loss_ce", "loss_bbox", "loss_giou")
        criterion.weight_dict.update(
            {f"{part}_{layer}": criterion.weight_dict[part] for part in parts for layer in layers}
        )
        named = original.targets(targets)

        def work() -> Tensor:
            logits.grad = boxes.grad = None
            outputs = [{"pred_logits": a, "pred_boxes": b} for a, b in zip(logits, boxes, strict=True)]
            loss = original.total_loss(criterion, criterion({**outputs[-1], "aux_outputs": outputs[:-1]}, named))
            loss.backward()
            return loss

        return work

    return Comparison(
        [
            contestant("ours", lambda: loss_work("ours", logits, boxes, targets)),
            contestant("stock", lambda: loss_work("stock", logits, boxes, targets)),
            contestant("original", prepare_original),
        ],
        budget_s=20,
        most_rounds=100,
    )


def loss_large(bench: Bench) -> Comparison:
    return _comparison(bench, *bench.pick(quick=(4, 10), cpu=(32, 40), cuda=(32, 40)))


def loss_small(bench: Bench) -> Comparison:
    return _comparison(bench, batch_size=2, objects=7)


CASES = [
    Case(
        "loss_large",
        "loss and matching alone, 6 layers, batch 32, 40 objects, backward included",
        loss_large,
        targets={"cpu": {"stock": 15, "original": 15}, "cuda": {"stock": 10}},
    ),
    Case(
        "loss_small",
        "the same, batch 2, 7 objects",
        loss_small,
        targets={"cpu": {"stock": 2, "original": 2}, "cuda": {"stock": 3}},
    ),
]
