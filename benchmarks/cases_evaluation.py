"""COCO evaluation: from batches of detections and targets to the twelve numbers."""

import contextlib
import io
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch

from cases import Bench, Case, Comparison, Contestant, Ready, Unavailable
from hf_detr import CocoEvaluator

NAMES = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")
NAMES += ("mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large")
NUM_CLASSES = 80

Batches = list[tuple[list, list]]


def make_batches(num_images: int, num_detections: int, seed: int = 0) -> Batches:
    """Batches of 16 images: results {scores, labels, boxes xyxy px} as float32 tensors, and COCO annotations."""
    rng = np.random.default_rng(seed)
    batches = []
    for start in range(0, num_images, 16):
        pairs = [_one_image(image_id, num_detections, rng) for image_id in range(start, min(start + 16, num_images))]
        batches.append(([result for result, _ in pairs], [target for _, target in pairs]))
    return batches


def _one_image(image_id: int, num_detections: int, rng: np.random.Generator) -> tuple[dict, dict]:
    num_targets = rng.poisson(7)
    sides = rng.uniform(8, 250, (num_targets, 2))
    boxes_xywh = np.concatenate((rng.uniform(0, 640 - sides), sides), axis=1).round(2)
    labels = rng.integers(0, NUM_CLASSES, num_targets)
    crowds = rng.random(num_targets) < 0.03
    # some detections lie near a target, the others anywhere; a few scores tie
    sides = rng.uniform(8, 250, (num_detections, 2))
    found_xywh = np.concatenate((rng.uniform(0, 640 - sides), sides), axis=1)
    found_labels = rng.integers(0, NUM_CLASSES, num_detections)
    near = rng.random(num_detections) < (0.3 if num_targets else 0)
    which = rng.integers(0, max(num_targets, 1), near.sum())
    if near.any():
        moved = rng.normal(0, 0.08, (near.sum(), 4)) * np.tile(boxes_xywh[which, 2:], 2)
        found_xywh[near] = np.abs(boxes_xywh[which] + moved)
        found_labels[near] = labels[which]
    scores = np.where(near, rng.beta(4, 2, num_detections), rng.beta(1, 6, num_detections)).round(4)
    found_xyxy = np.concatenate((found_xywh[:, :2], found_xywh[:, :2] + found_xywh[:, 2:]), axis=1)
    result = {
        "scores": torch.tensor(scores, dtype=torch.float32),
        "labels": torch.tensor(found_labels),
        "boxes": torch.tensor(found_xyxy, dtype=torch.float32),
    }
    annotations = [
        {"bbox": box.tolist(), "category_id": int(k), "area": float(box[2] * box[3]), "iscrowd": int(crowd)}
        for box, k, crowd in zip(boxes_xywh, labels, crowds, strict=True)
    ]
    return result, {"image_id": image_id, "annotations": annotations}


def with_hf_detr(batches: Batches) -> dict[str, float]:
    evaluator = CocoEvaluator([str(k) for k in range(NUM_CLASSES)])
    for results, targets in batches:
        evaluator.update(results, targets)
    return evaluator.summary()


def with_pycocotools(batches: Batches) -> dict[str, float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return _with_pycocotools_api(batches, COCO, COCOeval)


def with_faster_coco_eval(batches: Batches) -> dict[str, float]:
    from faster_coco_eval import COCO, COCOeval_faster

    return _with_pycocotools_api(batches, COCO, COCOeval_faster)


def _with_pycocotools_api(batches: Batches, coco_class: type, evaluation_class: type) -> dict[str, float]:
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
        truth = coco_class()
        truth.dataset = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": k, "name": str(k)} for k in range(NUM_CLASSES)],
        }
        truth.createIndex()
        evaluation = evaluation_class(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, map(float, evaluation.stats[: len(NAMES)]), strict=True))


def with_torchmetrics(batches: Batches) -> dict[str, float]:
    from torchmetrics.detection import MeanAveragePrecision

    # its own recall thresholds are these in float32: some lie above the recall they stand for, and the next precision
    # is taken, which was seen to move a number by 5e-4
    metric = MeanAveragePrecision(box_format="xyxy", rec_thresholds=np.linspace(0, 1, 101).tolist())
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


def coco_evaluation(bench: Bench) -> Comparison:
    batches = make_batches(*bench.pick(quick=(20, 10), cpu=(5000, 100), cuda=(5000, 100)))
    # compared on the first images alone: all of them take the slowest a minute
    few = batches[: bench.pick(quick=1, cpu=12, cuda=12)]

    def contestant(name: str, evaluate: Callable[[Batches], dict[str, float]], package: str) -> Contestant:
        def prepare() -> Ready:
            # torchmetrics takes pycocotools where nothing else is asked for
            packages = {package, "pycocotools"} if package == "torchmetrics" else {package}
            missing = [needed for needed in packages if find_spec(needed) is None]
            if missing and name != "ours":
                raise Unavailable(f"not installed: {', '.join(missing)} (pip install hf-detr[bench])")
            return Ready(
                lambda: evaluate(batches),
                lambda: {
                    key: torch.tensor(value, dtype=torch.float64)
                    for key, value in evaluate(few).items()
                    if key in NAMES
                },
            )

        return Contestant(name, prepare)

    return Comparison(
        [
            contestant("ours", with_hf_detr, "hf_detr"),
            contestant("torchmetrics", with_torchmetrics, "torchmetrics"),
            contestant("pycocotools", with_pycocotools, "pycocotools"),
            contestant("faster-coco-eval", with_faster_coco_eval, "faster_coco_eval"),
        ],
        apart=True,
        images=sum(len(targets) for _, targets in batches),
        notes="100 detections an image, 80 classes; torchmetrics with its default backend and recall thresholds in "
        "float64; one call each, each in a process of its own. Compared on the first images.",
    )


CASES = [
    Case(
        "coco_evaluation",
        "COCO evaluation of 5,000 images x 100 detections",
        coco_evaluation,
        targets={"cpu": {"torchmetrics": 30, "pycocotools": 30, "faster-coco-eval": 5}},
        memory_targets={"cpu": {"faster-coco-eval": 0.5}},
        devices=("cpu",),
        reason="work of the host; see the results of a CPU",
    ),
]
