"""An epoch of pictures of mixed aspect ratios: what batches of like pictures save in padding."""

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from cases import Bench, Case, Comparison, Contestant, Ready
from contestants import ours, training_step
from hf_detr import AspectRatioBatchSampler, DetectionCollator
from inputs import labels, mixed_sizes, smooth_noise


def epoch_of_mixed_ratios(bench: Bench) -> Comparison:
    count, batch_size, shortest_edge = bench.pick(quick=(6, 2, 48), cpu=(32, 4, 256), cuda=(512, 8, 640))
    sizes_hw = mixed_sizes(count, shortest_edge)
    generator = torch.Generator().manual_seed(0)
    pictures = [
        {"pixel_values": smooth_noise(h, w, generator), "labels": label}
        for (h, w), label in zip(sizes_hw, labels([7] * count), strict=True)
    ]
    bf16 = bench.device.type == "cuda"

    def batches(grouped: bool) -> DataLoader:
        if grouped:
            sampler = AspectRatioBatchSampler(sizes_hw, batch_size=batch_size)
        else:
            order = RandomSampler(pictures, generator=torch.Generator().manual_seed(0))
            sampler = BatchSampler(order, batch_size, drop_last=False)
        return DataLoader(pictures, batch_sampler=sampler, collate_fn=DetectionCollator())

    def contestant(name: str, grouped: bool) -> Contestant:
        def prepare() -> Ready:
            model = ours(bench.checkpoint, bench.device)
            current: dict = {}

            def loss_of():
                with torch.autocast(bench.device.type, torch.bfloat16, enabled=bf16):
                    return model(**current).loss

            step = training_step(model, loss_of)

            def work() -> None:
                for batch in batches(grouped):
                    current.clear()
                    mask = {"pixel_mask": batch["pixel_mask"].to(bench.device)} if "pixel_mask" in batch else {}
                    targets = [{k: v.to(bench.device) for k, v in label.items()} for label in batch["labels"]]
                    current.update(pixel_values=batch["pixel_values"].to(bench.device), labels=targets, **mask)
                    step()

            def answer() -> dict[str, torch.Tensor]:
                seen = [batch["pixel_values"].shape for batch in batches(grouped)]
                return {"pictures seen": torch.tensor([shape[0] for shape in seen]).sum().float()}

            return Ready(work, answer)

        return Contestant(name, prepare)

    canvas = {
        grouped: sum(batch["pixel_values"].shape.numel() for batch in batches(grouped)) for grouped in (True, False)
    }
    return Comparison(
        [contestant("grouped batches", True), contestant("random batches", False)],
        budget_s=0,
        least_rounds=2,
        images=count,
        warmups=0,
        notes=f"{count} pictures, shorter edge {shortest_edge}, batch {batch_size}, this package on both sides; pixels "
        f"on canvases, random over grouped: {canvas[False] / canvas[True]:.2f}.",
    )


CASES = [
    Case(
        "epoch_mixed_ratios",
        "epoch of mixed aspect ratios, grouped against random batches",
        epoch_of_mixed_ratios,
        targets={"cpu": {"random batches": 1.2}, "cuda": {"random batches": 1.2}},
    ),
]
