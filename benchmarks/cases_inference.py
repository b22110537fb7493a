"""Inference: images in, logits and boxes out, as a user gets it by `from_pretrained` and `torch.no_grad()`."""

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from cases import TOLERANCE, Bench, Case, Comparison, Contestant, Ready
from contestants import ours, stock
from inputs import batch, mixed_sizes, padded_batch


def bf16_tolerance(bench: Bench) -> float:
    """Eight bits of mantissa through a hundred layers: what logits of size 1 to 5 were seen to lose, times three."""
    return bench.pick(quick=2.0, cpu=0.3, cuda=0.3)


def _ready(model: nn.Module, forward: Callable[[nn.Module], object], bench: Bench, bf16: bool) -> Ready:
    def work():
        with torch.no_grad(), torch.autocast(bench.device.type, torch.bfloat16, enabled=bf16):
            return forward(model)

    return Ready(work, lambda: _answer(work()))


def _answer(outputs) -> dict[str, Tensor]:
    if isinstance(outputs, dict) and "pred_logits" in outputs:  # the original's
        return {"logits": outputs["pred_logits"], "boxes": outputs["pred_boxes"]}
    return {"logits": outputs.logits, "boxes": outputs.pred_boxes}


def _contestant(
    name: str, bench: Bench, pixels: Tensor, mask: Tensor | None = None, bf16: bool = False, compiled: bool = False
) -> Contestant:
    """`name` begins with ours, stock or original."""

    def prepare() -> Ready:
        if name.startswith("original"):
            model, _ = bench.original.build(bench.checkpoint, bench.device)
            return _ready(model, lambda model: model(bench.original.nested(pixels, mask)), bench, bf16)
        model = (ours if name.startswith("ours") else stock)(bench.checkpoint, bench.device).eval()
        if compiled:
            # compiling for a second is nobody's wish in a smoke test
            model = torch.compile(model, backend="eager" if bench.quick else "inductor")
        return _ready(model, lambda model: model(pixel_values=pixels, pixel_mask=mask), bench, bf16)

    return Contestant(name, prepare, bf16_tolerance(bench) if "bf16" in name else TOLERANCE)


def _one_image(bench: Bench) -> Tensor:
    return batch(1, *bench.pick(quick=(96, 128), cpu=(800, 1066), cuda=(800, 1066))).to(bench.device)


def inference_fp32(bench: Bench) -> Comparison:
    make = partial(_contestant, bench=bench, pixels=_one_image(bench))
    return Comparison(
        [make("ours"), make("stock"), make("original")],
        most_rounds=bench.pick(quick=2, cpu=15, cuda=100),
        weigh=True,
        floor_dtype="float32",
        images=1,
    )


def inference_bf16(bench: Bench) -> Comparison:
    make = partial(_contestant, bench=bench, pixels=_one_image(bench))
    # eight bits against twenty-four: ours is the one that is off
    off = partial(Contestant, tolerance=bf16_tolerance(bench))
    peers = [off(name, make(name).prepare) for name in ("stock fp32", "original")]
    return Comparison(
        [make("ours bf16", bf16=True), peers[0], make("stock bf16", bf16=True), peers[1]],
        most_rounds=bench.pick(quick=2, cpu=15, cuda=100),
        floor_dtype="bfloat16",
        images=1,
        notes="bf16 by torch.autocast; differences are those of bf16, not held to 1e-4.",
    )


def inference_compiled(bench: Bench) -> Comparison:
    warnings.filterwarnings("ignore", message=".*(TensorFloat32|Online softmax).*")
    make = partial(_contestant, bench=bench, pixels=_one_image(bench), compiled=True)
    return Comparison(
        [make("ours"), make("stock")],
        most_rounds=bench.pick(quick=2, cpu=10, cuda=100),
        warmups=2,
        images=1,
        notes="torch.compile(model) with its defaults; the time of compiling is not in it.",
    )


def inference_mixed(bench: Bench) -> Comparison:
    shortest_edge = bench.pick(quick=64, cpu=480, cuda=800)
    pixels, mask = padded_batch(mixed_sizes(bench.pick(quick=3, cpu=8, cuda=8), shortest_edge))
    make = partial(_contestant, bench=bench, pixels=pixels.to(bench.device), mask=mask.to(bench.device))
    return Comparison(
        [make("ours"), make("stock"), make("original")],
        budget_s=60,
        most_rounds=bench.pick(quick=2, cpu=5, cuda=50),
        weigh=True,
        floor_dtype="float32",
        images=len(pixels),
        notes=f"{len(pixels)} images, shorter edge {shortest_edge}, on a canvas of "
        f"{pixels.shape[-2]} x {pixels.shape[-1]}.",
    )


CASES = [
    Case(
        "inference_fp32",
        "inference, R50, 1 x 3 x 800 x 1066, fp32, nothing asked of the user",
        inference_fp32,
        targets={"cpu": {"stock": 1.5, "original": 1.5}, "cuda": {"stock": 1.3}},
    ),
    Case(
        "inference_bf16",
        "the same, bf16",
        inference_bf16,
        targets={"cpu": {"stock fp32": 3, "stock bf16": 2, "original": 3}, "cuda": {"stock bf16": 1.5}},
    ),
    Case(
        "inference_compiled",
        "the same, fp32, torch.compile on both",
        inference_compiled,
        targets={"cpu": {"stock": 1.2}, "cuda": {"stock": 1.3}},
    ),
    Case(
        "inference_mixed",
        "inference, batch 8 of mixed sizes, padded, fp32",
        inference_mixed,
        targets={"cpu": {"stock": 1.4, "original": 1.4}, "cuda": {"stock": 1.4}},
    ),
]
