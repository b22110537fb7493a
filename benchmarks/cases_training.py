"""A training step: forward, matching, loss, backward and AdamW, from images and labels; and an epoch of steps.

Each package is timed as it comes: dropout on, the auxiliary loss on. Compared beforehand are twins of the same weights
without dropout, in training mode: logits, the last layer's losses, and with the original also the sum over all layers.
Stock's auxiliary loss changes its logits (docs/differences.md), so its twin goes without.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from cases import TOLERANCE, Bench, Case, Comparison, Contestant, Counts, Ready
from contestants import bf16_tolerance, load_model, training_step
from hf_detr import AspectRatioBatchSampler, DetectionCollator
from host_visits import counting_device
from inputs import labels, mixed_sizes, padded_batch, smooth_noise, to

_LOSSES = ("loss_ce", "loss_bbox", "loss_giou")
_NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}


def _step_inputs(bench: Bench) -> tuple[Tensor, list[dict[str, Tensor]]]:
    count, height, width = bench.pick(quick=(2, 64, 96), cpu=(2, 480, 640), cuda=(8, 800, 800))
    pixels, _ = padded_batch([(height, width)] * count)
    return to(bench.device, pixels), to(bench.device, labels([7] * count))


def _autocast(name: str, bench: Bench) -> AbstractContextManager:
    return torch.autocast(bench.device.type, torch.bfloat16, enabled="bf16" in name)


def steps(names: dict[str, tuple[str, ...]], stem_frozen: bool = False, **measured) -> Callable[[Bench], Comparison]:
    """A case of the contestants `names` by device type: package, and bf16 where it says so. `stem_frozen` freezes
    stock's stem as the others do; `measured` are fields of `Comparison`."""

    def make(bench: Bench) -> Comparison:
        pixels, targets = _step_inputs(bench)
        here = names[bench.device.type]
        tolerance = bf16_tolerance(bench) if "bf16" in here[0] else TOLERANCE

        def contestant(name: str) -> Contestant:
            def prepare() -> Ready:
                model = load_model(name, bench, stem_frozen=stem_frozen, auxiliary_loss=True)

                def loss_of() -> Tensor:
                    with _autocast(name, bench):
                        return model(pixel_values=pixels, labels=targets).loss

                def answer() -> dict[str, Tensor]:
                    every_layer = "stock" not in name
                    twin = load_model(name, bench, auxiliary_loss=every_layer, **_NO_DROPOUT).train()
                    with torch.no_grad(), _autocast(name, bench):
                        outputs = twin(pixel_values=pixels, labels=targets)
                    total = {"loss of all layers": outputs.loss / len(targets)} if every_layer else {}
                    return {"logits": outputs.logits, **{loss: outputs.loss_dict[loss] for loss in _LOSSES}, **total}

                return Ready(training_step(model, loss_of), answer)

            return Contestant(name, prepare, tolerance)

        return Comparison(
            [contestant(name) for name in here],
            most_rounds={"cpu": 8, "cuda": 30}[bench.device.type],
            floor_dtype="bfloat16" if "bf16" in here[0] else "float32",
            images=len(targets),
            **measured,
        )

    return make


def epoch_of_mixed_ratios(bench: Bench) -> Comparison:
    """What batches of images of like aspect ratio save in padding: this package on both sides."""
    count, batch_size, shortest_edge = bench.pick(quick=(6, 2, 48), cpu=(32, 4, 256), cuda=(512, 8, 640))
    sizes_hw = mixed_sizes(count, shortest_edge)
    generator = torch.Generator().manual_seed(0)
    noise = [smooth_noise(*size_hw, generator) for size_hw in sizes_hw]
    images = [{"pixel_values": p, "labels": label} for p, label in zip(noise, labels([7] * count), strict=True)]

    def batches(name: str) -> DataLoader:
        sampler = BatchSampler(RandomSampler(images, generator=torch.Generator().manual_seed(0)), batch_size, False)
        if name == "grouped batches":
            sampler = AspectRatioBatchSampler(sizes_hw, batch_size=batch_size)
        return DataLoader(images, batch_sampler=sampler, collate_fn=DetectionCollator())

    def contestant(name: str) -> Contestant:
        def prepare() -> Ready:
            model = load_model("ours", bench)
            current: dict = {}

            def loss_of() -> Tensor:
                with _autocast("bf16" if bench.device.type == "cuda" else "", bench):
                    return model(**current).loss

            step = training_step(model, loss_of)

            def work() -> None:
                for batch in batches(name):
                    current.clear()
                    current.update(to(bench.device, dict(batch)))
                    step()

            seen = sum(len(batch["pixel_values"]) for batch in batches(name))
            return Ready(work, lambda: {"images seen": torch.tensor(float(seen))})

        return Contestant(name, prepare)

    names = ("grouped batches", "random batches")
    grouped, random = (sum(batch["pixel_values"].numel() for batch in batches(name)) for name in names)
    return Comparison(
        [contestant(name) for name in names],
        budget_s=0,
        least_rounds=2,
        images=count,
        warmups=0,
        notes=f"{count} images, shorter edge {shortest_edge}, batch {batch_size}, this package on both sides; pixels "
        f"on canvases, random over grouped: {random / grouped:.2f}.",
    )


def host_work(bench: Bench) -> Counts:
    """What a step asks of a device besides arithmetic: waits of the host, and starts of kernels or operators."""
    counts = {}
    for name in ("ours", "stock"):
        model = load_model(name, bench, auxiliary_loss=True).train()
        with counting_device(bench.device) as (device, count):
            model.to(device)
            pixels, targets = to(device, _step_inputs(bench))

            def step(model=model, pixels=pixels, targets=targets):
                with _autocast("bf16" if bench.device.type == "cuda" else "", bench):
                    loss = model(pixel_values=pixels, labels=targets).loss
                loss.backward()

            for _ in range(2 if bench.device.type == "cuda" else 0):  # libraries are loaded by first calls
                step()
            counts[name] = count(step)
    return Counts(
        counts,
        limits={"host synchronisations": 2},
        notes="forward, loss and backward. On a GPU as PyTorch reports them; without one on a pretended device "
        "(benchmarks/host_visits.py), with operators in place of kernels.",
    )


CASES = [
    Case(
        "training_step",
        "training step, R50, auxiliary loss on, each as it comes; CPU: batch 2 x 480 x 640, fp32; "
        "GPU: batch 8 x 800 x 800, bf16",
        # the original has no mixed precision
        steps(
            {"cpu": ("ours", "stock", "original"), "cuda": ("ours bf16", "stock bf16")},
            budget_s=60,
            weigh=True,
            notes="stock trains all of the backbone, ours and the original freeze the stem and the first stage.",
        ),
        targets={"cpu": {"stock": 1.6, "original": 1.15}, "cuda": {"stock bf16": 1.5}},
        memory_targets={"cuda": {"stock bf16": 0.8}},
    ),
    Case(
        "training_step_stem_frozen",
        "the same, the stem frozen in stock too",
        steps({"cpu": ("ours", "stock"), "cuda": ("ours bf16", "stock bf16")}, stem_frozen=True),
        targets={"cpu": {"stock": 1.2}, "cuda": {"stock bf16": 1.3}},
    ),
    Case(
        "training_step_bf16",
        "the same, bf16 autocast",
        steps(
            {"cpu": ("ours bf16", "stock fp32", "stock bf16", "original fp32")},
            notes="bf16 by torch.autocast; differences are those of bf16, not held to 1e-4.",
        ),
        targets={"cpu": {"stock fp32": 3.5, "original fp32": 2}},
        devices=("cpu",),
        reason="on a GPU the row before is bf16",
    ),
    Case(
        "epoch_mixed_ratios",
        "epoch of mixed aspect ratios, grouped against random batches",
        epoch_of_mixed_ratios,
        targets={device: {"random batches": 1.2} for device in ("cpu", "cuda")},
    ),
    Case("host_work", "host synchronisations, and kernels or operators, of one training step", host_work),
]
