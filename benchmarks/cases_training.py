"""A training step: forward, matching, loss, backward and AdamW, from images and labels.

What is timed is each package as it comes: dropout on, the auxiliary loss on. What is compared beforehand are twins of
the same weights without dropout, in training mode: logits, the last layer's losses, and with the original also the sum
over all layers. Stock's auxiliary loss changes its logits (docs/differences.md), so its twin goes without.
"""

from functools import partial

import torch
from torch import Tensor

from cases import TOLERANCE, Bench, Case, Comparison, Contestant, Ready
from cases_inference import bf16_tolerance
from contestants import ours, stock, training_step
from inputs import batch, labels

_LOSSES = ("loss_ce", "loss_bbox", "loss_giou")
_NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}


def _contestant(
    name: str,
    bench: Bench,
    pixels: Tensor,
    targets: list[dict[str, Tensor]],
    bf16: bool = False,
    stem_frozen: bool = False,
    tolerance: float = TOLERANCE,
) -> Contestant:
    """`name` begins with ours, stock or original."""
    cast = partial(torch.autocast, bench.device.type, torch.bfloat16, enabled=bf16)

    def prepare() -> Ready:
        if name.startswith("original"):
            return _prepare_original(bench, pixels, targets)
        build = ours if name.startswith("ours") else partial(stock, stem_frozen=stem_frozen)
        model = build(bench.checkpoint, bench.device, auxiliary_loss=True)

        def loss_of() -> Tensor:
            with cast():
                return model(pixel_values=pixels, labels=targets).loss

        def answer() -> dict[str, Tensor]:
            auxiliary_loss = name.startswith("ours")
            twin = build(bench.checkpoint, bench.device, auxiliary_loss=auxiliary_loss, **_NO_DROPOUT).train()
            with torch.no_grad(), cast():
                outputs = twin(pixel_values=pixels, labels=targets)
            losses = {loss: outputs.loss_dict[loss] for loss in _LOSSES}
            every_layer = {"loss of all layers": outputs.loss / len(targets)} if auxiliary_loss else {}
            return {"logits": outputs.logits, **losses, **every_layer}

        return Ready(training_step(model, loss_of), answer)

    return Contestant(name, prepare, tolerance)


def _prepare_original(bench: Bench, pixels: Tensor, targets: list[dict[str, Tensor]]) -> Ready:
    original = bench.original
    model, criterion = original.build(bench.checkpoint, bench.device)
    named = original.targets(targets)

    def loss_of() -> Tensor:
        return original.total_loss(criterion, criterion(model(original.nested(pixels)), named))

    def answer() -> dict[str, Tensor]:
        twin, criterion = original.build(bench.checkpoint, bench.device, dropout=0.0)
        with torch.no_grad():
            outputs = twin.train()(original.nested(pixels))
            losses = criterion(outputs, named)
        total = original.total_loss(criterion, losses) / len(targets)
        return {
            "logits": outputs["pred_logits"],
            "loss of all layers": total,
            **{loss: losses[loss] for loss in _LOSSES},
        }

    return Ready(training_step(model, loss_of), answer)


def _step_inputs(bench: Bench) -> dict:
    count, height, width = bench.pick(quick=(2, 64, 96), cpu=(2, 480, 640), cuda=(8, 800, 800))
    targets = [{name: value.to(bench.device) for name, value in label.items()} for label in labels([7] * count)]
    return {"bench": bench, "pixels": batch(count, height, width).to(bench.device), "targets": targets}


def training_step_as_it_comes(bench: Bench) -> Comparison:
    bf16 = bench.device.type == "cuda"
    inputs = _step_inputs(bench)
    tolerance = bf16_tolerance(bench) if bf16 else TOLERANCE
    make = partial(_contestant, **inputs, bf16=bf16, tolerance=tolerance)
    return Comparison(
        # the original knows no mixed precision, and the GPU's column no original
        [make("ours"), make("stock")] + ([] if bf16 else [make("original")]),
        budget_s=60,
        most_rounds=bench.pick(quick=2, cpu=8, cuda=30),
        weigh=True,
        floor_dtype="bfloat16" if bf16 else "float32",
        images=len(inputs["pixels"]),
        notes="stock trains all of the backbone, ours and the original freeze the stem and the first stage.",
    )


def training_step_stem_frozen(bench: Bench) -> Comparison:
    bf16 = bench.device.type == "cuda"
    inputs = _step_inputs(bench)
    tolerance = bf16_tolerance(bench) if bf16 else TOLERANCE
    make = partial(_contestant, **inputs, bf16=bf16, stem_frozen=True, tolerance=tolerance)
    return Comparison(
        [make("ours"), make("stock")],
        most_rounds=bench.pick(quick=2, cpu=8, cuda=30),
        weigh=bf16,
        floor_dtype="bfloat16" if bf16 else "float32",
        images=len(inputs["pixels"]),
    )


def training_step_bf16(bench: Bench) -> Comparison:
    inputs = _step_inputs(bench)
    make = partial(_contestant, **inputs, tolerance=bf16_tolerance(bench))
    return Comparison(
        [make("ours bf16", bf16=True), make("stock fp32"), make("stock bf16", bf16=True), make("original fp32")],
        most_rounds=bench.pick(quick=2, cpu=6, cuda=30),
        floor_dtype="bfloat16",
        images=len(inputs["pixels"]),
        notes="bf16 by torch.autocast; differences are those of bf16, not held to 1e-4.",
    )


CASES = [
    Case(
        "training_step",
        "training step, R50, auxiliary loss on, each as it comes; CPU: batch 2 x 480 x 640, fp32; "
        "GPU: batch 8 x 800 x 800, bf16",
        training_step_as_it_comes,
        targets={"cpu": {"stock": 2.0, "original": 1.15}, "cuda": {"stock": 1.5}},
        memory_targets={"cuda": {"stock": 0.8}},
    ),
    Case(
        "training_step_stem_frozen",
        "the same, the stem frozen in stock too",
        training_step_stem_frozen,
        targets={"cpu": {"stock": 1.2}, "cuda": {"stock": 1.3}},
    ),
    Case(
        "training_step_bf16",
        "the same, bf16 autocast",
        training_step_bf16,
        targets={"cpu": {"stock fp32": 3.5, "original fp32": 2}},
        devices=("cpu",),
        reason="on a GPU the row before is bf16",
    ),
]
