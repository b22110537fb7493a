"""Trains one contestant for so many minutes and writes its AP over time as JSON: one process a run.

The clock counts training steps alone, batches, augmentation and moving average included, evaluation and preparation
not: on the CPU the seconds that the process computed, so that what else the machine does matters little; on a GPU the
wall clock. All have the same images in the same order and the precision of the case. The schedule runs over the clock,
see `rate_at`.
"""

import copy
import json
import math
import random
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from hf_detr import DetectionCollator, DetectionTransform
from hf_detr.data.random_numbers import seeded
from hf_detr.training import evaluate_model
from hf_detr.training.ema import WeightAverage
from hf_detr.training.teacher import Lessons

from .cases import Case, write_start
from .contestants import make_model, make_optimizer

CLOSING = 0.9  # of the clock, after which images are augmented no more than they must


def train(
    prepared: Path,
    start: Path,
    settings: dict,
    seed: int,
    minutes: float,
    points: int,
    device: str,
    teacher: Path | None = None,
    save: Path | None = None,
) -> dict:
    """`points` evaluations, evenly spread over the clock; returns the curve and the facts of the run. `teacher`: the
    detector that contestants with a teacher learn from; `save`: a folder for the weights at the end, and the
    processor."""
    case = torch.load(prepared, weights_only=False)  # of `prepare`
    write_start(case, start, seed)
    torch.manual_seed(seed)
    model = make_model(start, settings).to(device)
    optimizer = make_optimizer(model, settings, case.rate * settings["rate"], case.backbone_rate * settings["rate"])
    rates = [group["lr"] for group in optimizer.param_groups]
    mixed_precision = case.mixed_precision and settings["mixed_precision"]
    clip = 0.01 if settings["example_recipe"] else settings["clip"]
    batch_size = round(case.batch_size * settings["batch"])
    now = time.perf_counter if device == "cuda" else time.process_time
    lessons = None
    if settings["teacher"]:
        lessons = Lessons(str(teacher), model.config, case.processor, device, settings["teacher"])
    answered: dict[tuple[int, bool], dict] = {}  # what it said of an image, mirrored or not
    average = WeightAverage(model, decay=None) if settings["averages"] else None
    transforms = None if settings["augment"] == "none" else augmentations(case, settings["augment"])
    orders, flips = random.Random(seed), random.Random(seed + 1)
    minutes *= settings["share_of_time"]
    budget, clock, step, order, curve = 60 * minutes, 0.0, 0, [], []
    frozen = [p for p in model.model.backbone.parameters() if p.requires_grad] if settings["frozen_share"] else []
    for parameter in frozen:
        parameter.requires_grad_(False)
    while True:
        if frozen and clock >= settings["frozen_share"] * budget:
            for parameter in frozen:
                parameter.requires_grad_(True)
            frozen = []
        if clock >= budget * (len(curve) + 1) / points:
            weights = average.model if average else copy.deepcopy(model).eval()
            numbers = evaluate_model(weights, case.processor, case.test, batch_size=32).compute()
            curve.append({"seconds": clock, "steps": step, "map": numbers["map"], "map_50": numbers["map_50"]})
            print(json.dumps(curve[-1]), file=sys.stderr, flush=True)
            if len(curve) == points:
                if save:
                    weights.save_pretrained(save)
                    case.processor.save_pretrained(save)
                break
        begun = now()
        rate = rate_at(clock / budget, settings["schedule"])
        for group, full in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = full * rate
        if len(order) < batch_size:
            order = list(range(len(case.labels)))
            orders.shuffle(order)
        chosen, order = order[:batch_size], order[batch_size:]
        if transforms is None:
            batch, flipped = _batch(case, chosen, flips, device)
            if lessons:
                with torch.autocast(device, torch.bfloat16, enabled=mixed_precision):
                    teach(lessons, answered, list(zip(chosen, flipped, strict=True)), batch)
        else:
            with seeded(seed, step):
                batch = augmented_batch(case, transforms[clock >= CLOSING * budget], chosen, device)
            if lessons:  # no two of these are alike
                with torch.autocast(device, torch.bfloat16, enabled=mixed_precision):
                    batch = lessons(batch)
        if clock < budget * settings["small_share"]:
            small = {"scale_factor": settings["small_scale"], "mode": "bilinear", "antialias": True}
            batch["pixel_values"] = F.interpolate(batch["pixel_values"], **small)
        if settings["one_to_many"]:
            model.is_on = clock < budget * settings["many_share"]
        with torch.autocast(device, torch.bfloat16, enabled=mixed_precision):
            outputs = model(**batch)
        loss = outputs.loss
        if lessons and settings["teacher_weight"] != 1:
            loss = loss + (settings["teacher_weight"] - 1) * outputs.loss_dict["loss_teacher"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if average:
            average.update(model, step)
        if device == "cuda":
            torch.cuda.synchronize()
        clock += now() - begun
    return {"settings": settings, "seed": seed, "images": step * batch_size, "ms_per_step": 1000 * clock / step,
            "curve": curve}  # fmt: skip


def teach(lessons: Lessons, answered: dict, keys: list[tuple[int, bool]], batch: dict) -> None:
    """Adds to the labels what the teacher says, which is asked once of an image as it stands, once of it mirrored."""
    new = [index for index, key in enumerate(keys) if key not in answered]
    if new:
        answers = lessons({"pixel_values": batch["pixel_values"][new], "labels": [{} for _ in new]})["labels"]
        answered.update(zip((keys[index] for index in new), answers, strict=True))
    for key, label in zip(keys, batch["labels"], strict=True):
        label |= answered[key]


def rate_at(done: float, schedule: str) -> float:
    """The share of the learning rate when `done` of the clock, in [0, 1], is over.

    "cosine": a warm-up over a twentieth, then a cosine to zero; "one-cycle": the same with a warm-up over a quarter;
    "step": a warm-up over a fiftieth, and a tenth after four fifths; "drop": no warm-up, and a tenth after two thirds,
    the paper's schedule and that of `hf-detr train`.
    """
    done = min(1.0, max(done, 1e-4))
    if schedule == "drop":
        return 1.0 if done < 2 / 3 else 0.1
    if schedule == "step":
        return min(1.0, done / 0.02) * (1.0 if done < 0.8 else 0.1)
    warm_up = {"cosine": 0.05, "one-cycle": 0.25}[schedule]
    if schedule == "one-cycle" and done > warm_up:
        return 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))
    return min(1.0, done / warm_up) * (0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1.0)


def augmentations(case: Case, augment: str) -> tuple[DetectionTransform, DetectionTransform]:
    """Those of most of the clock, and those of its end, when what can end has ended."""
    if case.rows is None:
        raise ValueError(f"augment={augment!r}: the case {case.name} has no rows; prepare bccd anew, or take 'none'.")
    transform = DetectionTransform(case.processor, augment).with_rows(case.rows)
    return transform, transform.for_closing() or transform


def augmented_batch(case: Case, transform: DetectionTransform, chosen: list[int], device: str) -> dict:
    """The model's inputs of these rows, as the package makes them."""
    columns = {name: [case.rows[index][name] for index in chosen] for name in case.rows[0]}
    items = transform(columns)
    batch = DetectionCollator()([{"pixel_values": pixels} for pixels in items["pixel_values"]])
    labels = [{key: label[key].to(device) for key in ("class_labels", "boxes")} for label in items["labels"]]
    return {**{name: value.to(device) for name, value in batch.items()}, "labels": labels}


def _batch(case: Case, chosen: list[int], flips: random.Random, device: str) -> tuple[dict, list[bool]]:
    pixels = case.pixels[chosen].to(device).float()
    labels = [{key: value.to(device) for key, value in case.labels[index].items()} for index in chosen]
    flipped = [case.flip and flips.random() < 0.5 for _ in labels]
    for index, label in enumerate(labels):
        if flipped[index]:
            pixels[index] = pixels[index].flip(-1)
            boxes = label["boxes"].clone()
            boxes[:, 0] = 1 - boxes[:, 0]
            label["boxes"] = boxes
    return {"pixel_values": pixels, "labels": labels}, flipped
