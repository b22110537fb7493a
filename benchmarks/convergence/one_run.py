"""Trains one contestant for so many minutes and writes its AP over time as JSON: one process a run.

The clock counts training steps alone, batches and moving average included, evaluation and preparation not. All have the
same batches in the same order, the precision of the case, and the same schedule over the clock: a warm-up over a
twentieth of it, and a cosine to zero.
"""

import copy
import json
import math
import random
import time
from pathlib import Path

import torch

from hf_detr.training import evaluate_model
from hf_detr.training.ema import WeightAverage

from .cases import write_start
from .contestants import make_model, make_optimizer


def train(prepared: Path, start: Path, settings: dict, seed: int, minutes: float, points: int, device: str) -> dict:
    """`points` evaluations, evenly spread over the clock; returns the curve and the facts of the run."""
    case = torch.load(prepared, weights_only=False)  # of `prepare`
    write_start(case, start, seed)
    torch.manual_seed(seed)
    model = make_model(start, settings).to(device)
    optimizer = make_optimizer(model, settings, case.rate, case.backbone_rate)
    rates = [group["lr"] for group in optimizer.param_groups]
    clip = 0.01 if settings["example_recipe"] else 1.0
    average = WeightAverage(model, decay=None) if settings["averages"] else None
    orders, flips = random.Random(seed), random.Random(seed + 1)
    minutes *= settings["share_of_time"]
    budget, clock, step, order, curve = 60 * minutes, 0.0, 0, [], []
    while True:
        if clock >= budget * (len(curve) + 1) / points:
            weights = average.model if average else copy.deepcopy(model).eval()
            numbers = evaluate_model(weights, case.processor, case.test, batch_size=32).compute()
            curve.append({"seconds": clock, "steps": step, "map": numbers["map"], "map_50": numbers["map_50"]})
            print(json.dumps(curve[-1]), flush=True)
            if len(curve) == points:
                break
        begun = time.perf_counter()
        done = min(1.0, clock / budget)
        rate = min(1.0, max(done, 1e-4) / 0.05) * 0.5 * (1 + math.cos(math.pi * done))
        for group, full in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = full * rate
        if len(order) < case.batch_size:
            order = list(range(len(case.labels)))
            orders.shuffle(order)
        chosen, order = order[: case.batch_size], order[case.batch_size :]
        pixels, labels = _batch(case, chosen, flips, device)
        with torch.autocast(device, torch.bfloat16, enabled=case.mixed_precision):
            loss = model(pixels, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if average:
            average.update(model, step)
        if device == "cuda":
            torch.cuda.synchronize()
        clock += time.perf_counter() - begun
    return {"settings": settings, "seed": seed, "images": step * case.batch_size, "ms_per_step": 1000 * clock / step,
            "curve": curve}  # fmt: skip


def _batch(case, chosen: list[int], flips: random.Random, device: str) -> tuple[torch.Tensor, list[dict]]:
    pixels = case.pixels[chosen].to(device).float()
    labels = [{key: value.to(device) for key, value in case.labels[index].items()} for index in chosen]
    if case.flip:
        for index, label in enumerate(labels):
            if flips.random() < 0.5:
                pixels[index] = pixels[index].flip(-1)
                boxes = label["boxes"].clone()
                boxes[:, 0] = 1 - boxes[:, 0]
                label["boxes"] = boxes
    return pixels, labels
