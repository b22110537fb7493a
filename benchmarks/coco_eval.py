"""How long COCO evaluation takes and how much memory: CocoEvaluator beside pycocotools and torchmetrics.

    python benchmarks/coco_eval.py                       # 5,000 images, 100 detections each
    python benchmarks/coco_eval.py --images 500 --peers none

Every contestant runs in a process of its own, so that peak memory is its own; the data are made in it by one seed.
Times are from the first batch to the last number. Peers are left out, and said so, where they are not installed.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np
import torch

NAMES = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")
NAMES += ("mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large")
PACKAGES = {"hf_detr": "hf_detr", "pycocotools": "pycocotools", "torchmetrics": "torchmetrics"}


def make_batches(num_images: int, num_detections: int, num_classes: int, seed: int) -> Iterator[tuple[list, list]]:
    """Batches of 16 images: results {scores, labels, boxes xyxy px} as float32 tensors, and COCO annotations."""
    rng = np.random.default_rng(seed)
    for start in range(0, num_images, 16):
        results, targets = [], []
        for image_id in range(start, min(start + 16, num_images)):
            num_targets = rng.poisson(7)
            sides = rng.uniform(8, 250, (num_targets, 2))
            boxes_xywh = np.concatenate((rng.uniform(0, 640 - sides), sides), axis=1).round(2)
            labels = rng.integers(0, num_classes, num_targets)
            crowds = rng.random(num_targets) < 0.03
            # some detections sit near a target, the others anywhere; a few scores tie
            sides = rng.uniform(8, 250, (num_detections, 2))
            found_xywh = np.concatenate((rng.uniform(0, 640 - sides), sides), axis=1)
            found_labels = rng.integers(0, num_classes, num_detections)
            near = rng.random(num_detections) < (0.3 if num_targets else 0)
            which = rng.integers(0, max(num_targets, 1), near.sum())
            if near.any():
                moved = rng.normal(0, 0.08, (near.sum(), 4)) * np.tile(boxes_xywh[which, 2:], 2)
                found_xywh[near] = np.abs(boxes_xywh[which] + moved)
                found_labels[near] = labels[which]
            scores = np.where(near, rng.beta(4, 2, num_detections), rng.beta(1, 6, num_detections)).round(4)
            found_xyxy = np.concatenate((found_xywh[:, :2], found_xywh[:, :2] + found_xywh[:, 2:]), axis=1)
            results.append(
                {
                    "scores": torch.tensor(scores, dtype=torch.float32),
                    "labels": torch.tensor(found_labels),
                    "boxes": torch.tensor(found_xyxy, dtype=torch.float32),
                }
            )
            annotations = [
                {"bbox": box.tolist(), "category_id": int(k), "area": float(box[2] * box[3]), "iscrowd": int(crowd)}
                for box, k, crowd in zip(boxes_xywh, labels, crowds, strict=True)
            ]
            targets.append({"image_id": image_id, "annotations": annotations})
        yield results, targets


def run_hf_detr(batches: Iterator[tuple[list, list]], num_classes: int) -> dict[str, float]:
    from hf_detr.evaluation import CocoEvaluator

    evaluator = CocoEvaluator([str(k) for k in range(num_classes)])
    for results, targets in batches:
        evaluator.update(results, targets)
    return evaluator.summary()


def run_pycocotools(batches: Iterator[tuple[list, list]], num_classes: int) -> dict[str, float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images, annotations, detections = [], [], []
    for results, targets in batches:
        for result, target in zip(results, targets, strict=True):
            images.append({"id": target["image_id"]})
            for row in target["annotations"]:
                annotations.append(row | {"id": len(annotations) + 1, "image_id": target["image_id"]})
            boxes = result["boxes"].double()
            boxes_xywh = torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), dim=1).tolist()
            for box, score, k in zip(boxes_xywh, result["scores"].tolist(), result["labels"].tolist(), strict=True):
                detections.append({"image_id": target["image_id"], "category_id": k, "bbox": box, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": k} for k in range(num_classes)],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, map(float, evaluation.stats), strict=True))


def run_torchmetrics(batches: Iterator[tuple[list, list]], num_classes: int) -> dict[str, float]:
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(box_format="xyxy")
    for results, targets in batches:
        labels = []
        for target in targets:
            boxes = torch.tensor([row["bbox"] for row in target["annotations"]]).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            labels.append(
                {
                    "boxes": boxes,
                    "labels": torch.tensor([row["category_id"] for row in target["annotations"]], dtype=torch.int64),
                    "iscrowd": torch.tensor([row["iscrowd"] for row in target["annotations"]], dtype=torch.int64),
                    "area": torch.tensor([row["area"] for row in target["annotations"]]),
                }
            )
        metric.update(results, labels)
    return {name: float(value) for name, value in metric.compute().items() if name in NAMES}


def run_one(contestant: str, args: argparse.Namespace) -> dict:
    torch.set_num_threads(1)
    find = {"hf_detr": run_hf_detr, "pycocotools": run_pycocotools, "torchmetrics": run_torchmetrics}[contestant]
    find(make_batches(8, 5, 2, seed=0), 2)  # the imports and first calls are not what is measured
    started = time.perf_counter()
    for _ in make_batches(args.images, args.detections, args.classes, args.seed):
        pass
    making = time.perf_counter() - started
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    metrics = find(make_batches(args.images, args.detections, args.classes, args.seed), args.classes)
    seconds = time.perf_counter() - started - making
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "peak_mib": peak / 1024, "start_mib": before / 1024, "metrics": metrics}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="of each image")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peers", choices=("all", "none"), default="all")
    parser.add_argument("--json", help="write the results to this file")
    parser.add_argument("--only", choices=tuple(PACKAGES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(run_one(args.only, args)))
        return

    print(
        f"{args.images:,} images x {args.detections} detections, {args.classes} classes; {platform.machine()}, ", end=""
    )
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}")
    print(f"faster-coco-eval {version('faster-coco-eval')}\n")
    print(f"{'':<14}{'seconds':>9}{'peak MiB':>10}{'of which before':>17}{'AP':>9}{'largest difference':>20}")
    outcome, reference = {}, None
    for contestant, package in PACKAGES.items():
        if contestant != "hf_detr" and (args.peers == "none" or find_spec(package) is None):
            print(f"{contestant:<14}left out: {'not asked for' if args.peers == 'none' else 'not installed'}")
            continue
        command = [sys.executable, __file__, *sys.argv[1:], "--only", contestant]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        result = outcome[contestant] = json.loads(done.stdout.splitlines()[-1])
        reference = reference or result["metrics"]
        gap = max(abs(result["metrics"][name] - reference[name]) for name in NAMES)
        print(
            f"{contestant:<14}{result['seconds']:>9.1f}{result['peak_mib']:>10,.0f}{result['start_mib']:>17,.0f}",
            end="",
        )
        print(f"{result['metrics']['map']:>9.5f}{gap:>20.1e}")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"arguments": vars(args), "results": outcome}, file, indent=2)


if __name__ == "__main__":
    main()
