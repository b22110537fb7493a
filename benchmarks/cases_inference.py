"""Inference: images in, logits and boxes out, by `from_pretrained` and `torch.no_grad()`; ours after `fold_norms()`."""

from collections.abc import Callable

import torch

from cases import TOLERANCE, Bench, Case, Comparison, Contestant, Ready
from contestants import bf16_tolerance, load_model
from inputs import mixed_sizes, padded_batch


def inference(
    names: tuple[str, ...], images: Callable[[Bench], tuple], compiled: bool = False, **measured
) -> Callable[[Bench], Comparison]:
    """A case of the contestants `names`: package, and bf16 where it says so. `images` makes pixel_values and the
    pixel_mask or None; `measured` are fields of `Comparison`."""

    def make(bench: Bench) -> Comparison:
        pixels, mask = images(bench)

        def contestant(name: str) -> Contestant:
            def prepare() -> Ready:
                model = load_model(name, bench).eval()
                if name.startswith("ours"):
                    model.fold_norms()  # as `hf-detr predict` and `evaluate` do
                if compiled:
                    model = torch.compile(model, backend="eager" if bench.quick else "inductor")

                def work():
                    with torch.no_grad(), torch.autocast(bench.device.type, torch.bfloat16, enabled="bf16" in name):
                        return model(pixel_values=pixels, pixel_mask=mask)

                def answer() -> dict[str, torch.Tensor]:
                    outputs = work()
                    return {"logits": outputs.logits, "boxes": outputs.pred_boxes}

                return Ready(work, answer)

            return Contestant(name, prepare, bf16_tolerance(bench) if "bf16" in names[0] else TOLERANCE)

        most_rounds = {"cpu": 15, "cuda": 100}[bench.device.type]
        return Comparison(
            [contestant(name) for name in names], images=len(pixels), **{"most_rounds": most_rounds, **measured}
        )

    return make


def one_image(bench: Bench) -> tuple:
    sizes_hw = [bench.pick(quick=(96, 128), cpu=(800, 1066), cuda=(800, 1066))]
    return padded_batch(sizes_hw)[0].to(bench.device), None


def eight_of_mixed_sizes(bench: Bench) -> tuple:
    sizes_hw = mixed_sizes(*bench.pick(quick=(3, 64), cpu=(8, 480), cuda=(8, 800)))
    pixels, mask = padded_batch(sizes_hw)
    return pixels.to(bench.device), mask.to(bench.device)


CASES = [
    Case(
        "inference_fp32",
        "inference, R50, 1 x 3 x 800 x 1066, fp32, ours after fold_norms()",
        inference(("ours", "stock", "original"), one_image, weigh=True, floor_dtype="float32"),
        targets={"cpu": {"stock": 1.5, "original": 1.5}, "cuda": {"stock": 1.3}},
    ),
    Case(
        "inference_bf16",
        "the same, bf16",
        inference(
            ("ours bf16", "stock fp32", "stock bf16", "original"),
            one_image,
            floor_dtype="bfloat16",
            notes="bf16 by torch.autocast; differences are those of bf16, not held to 1e-4.",
        ),
        targets={"cpu": {"stock fp32": 3, "stock bf16": 2, "original": 3}, "cuda": {"stock bf16": 1.5}},
    ),
    Case(
        "inference_compiled",
        "the same, fp32, torch.compile on both",
        inference(
            ("ours", "stock"),
            one_image,
            compiled=True,
            warmups=2,
            notes="torch.compile(model) with its defaults; the time of compiling is not in it.",
        ),
        targets={"cpu": {"stock": 1.2}, "cuda": {"stock": 1.3}},
    ),
    Case(
        "inference_mixed",
        "inference, batch 8 of mixed sizes, padded, fp32",
        inference(
            ("ours", "stock", "original"),
            eight_of_mixed_sizes,
            budget_s=60,
            most_rounds=5,
            weigh=True,
            floor_dtype="float32",
            notes="shorter edge 480 on a CPU, 800 on a GPU; the canvas holds the longest edge of each direction.",
        ),
        targets={"cpu": {"stock": 1.8, "original": 1.8}, "cuda": {"stock": 1.4}},
    ),
]
