"""What stands behind an AP: which errors, at which threshold, between which classes, on which images.

Matching, confusion, error shares and calibration are hotcoco's; thresholds are read from its matches.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from hotcoco import COCO, COCOeval, Params
from numpy.typing import NDArray

from .coco import CocoEvaluator, as_coco

IOU = 0.5  # of every figure here, as usual for counts of errors
# TIDE (Bolya et al. 2020), in the order of the page
ERRORS = {
    "Cls": "classification: right place, wrong class",
    "Loc": "localisation: right class, too far off",
    "Both": "both of these",
    "Dupe": "duplicate of a better detection",
    "Bkg": "background: nothing is there",
    "Miss": "missed: no detection at all",
}
_COUNTS = ((1, 1), (2, 5), (6, 15), (16, 50), (51, 10**9))  # objects of an image


@dataclass(frozen=True)
class ClassCurve:
    """Of one class at IoU 0.5: detections in order of falling score, each as if it were the last that is kept.

    Attributes:
        scores, precision, recall, f1: (N,) in [0, 1].
        threshold: scores above it have the best F1; None without a detection or an object.
        best_f1: that F1, 0 without.
    """

    scores: NDArray
    precision: NDArray
    recall: NDArray
    f1: NDArray
    num_targets: int
    threshold: float | None
    best_f1: float


@dataclass(frozen=True)
class Analysis:
    """Of one `CocoEvaluator`, see `analyse`.

    Attributes:
        iou_type: what it compares, "bbox" or "segm".
        metrics: its `compute()`.
        curves: {class name: ClassCurve}; `overall`: of all classes together.
        confusion: (K + 1, K + 1) counts of objects by class (rows) and by what was found at their place (columns),
            above the overall threshold; the last row and column are background.
        error_ap: {TIDE error: what AP50 would gain without it}, `error_counts` how many there are.
        calibration: [(mean score, share that is right, detections)] by tenths of the score; `calibration_error` the
            mean gap between the first two, weighted by detections.
        ap_by_objects: {"1", "2 to 5" ...: (AP, images)} by the objects of an image.
        worst: image ids, those with most wrong or missed objects above the overall threshold first.
        image_errors: {image id: (wrong detections, missed objects)}.
        label_suspects: [(image id, class in the data, class found, score)] confident detections on objects of another
            class: the annotation may be wrong.
    """

    iou_type: str
    metrics: dict
    class_names: list[str]
    curves: dict[str, ClassCurve]
    overall: ClassCurve
    confusion: NDArray
    error_ap: dict[str, float]
    error_counts: dict[str, int]
    calibration: list[tuple[float, float, int]]
    calibration_error: float
    ap_by_objects: dict[str, tuple[float, int]]
    worst: list[int]
    image_errors: dict[int, tuple[int, int]]
    label_suspects: list[tuple[int, str, str, float]]


def analyse(evaluator: CocoEvaluator) -> Analysis:
    """Counts again what the evaluator holds, boxes or masks, this time keeping every match. Raises ValueError without
    an image."""
    counted, annotations, found = count(evaluator)
    class_names, image_ids, images = list(evaluator.names().values()), evaluator.image_ids(), evaluator.images()
    status = counted.image_diagnostics(iou_thr=IOU, score_thr=0.0)
    right = np.zeros(len(found), bool)
    ignored = np.ones(len(found), bool)  # matched to a crowd, or beyond the limit
    for number, what in status["dt_status"].items():  # ids are places in the list, from 1
        right[number - 1], ignored[number - 1] = what == "tp", what not in ("tp", "fp")
    image_of, scores, k_of = found[:, 0].astype(int), found[:, 1], found[:, 2].astype(int)
    target_k = np.array([row["category_id"] for row in annotations if not row["iscrowd"]], dtype=int)
    num_targets = np.bincount(target_k, minlength=len(class_names))
    curves = {}
    for k, name in enumerate(class_names):
        chosen = (k_of == k) & ~ignored
        curves[name] = _curve(scores[chosen], right[chosen], int(num_targets[k]))
    overall = _curve(scores[~ignored], right[~ignored], int(num_targets.sum()))

    threshold = 0.0 if overall.threshold is None else overall.threshold
    confusion = counted.confusion_matrix(iou_thr=IOU, min_score=threshold)["matrix"].astype(np.int64)
    tide = counted.tide_errors(pos_thr=IOU)
    calibration = counted.calibration(n_bins=10, iou_threshold=IOU)

    objects_of = np.bincount(
        [row["image_id"] for row in annotations if not row["iscrowd"]], minlength=len(images)
    )  # fmt: skip
    found_of = np.bincount(image_of[right & (scores > threshold)], minlength=len(images))
    wrong_of = np.bincount(image_of[~right & ~ignored & (scores > threshold)], minlength=len(images))
    missed_of = np.maximum(objects_of - found_of, 0)
    order = np.lexsort((np.arange(len(images)), -(wrong_of + missed_of)))
    suspects = sorted(status["label_errors"], key=lambda row: -row["dt_score"])
    return Analysis(
        iou_type=evaluator.iou_type,
        metrics=evaluator.compute(),
        class_names=class_names,
        curves=curves,
        overall=overall,
        confusion=confusion,
        error_ap={error: float(tide["delta_ap"][error]) for error in ERRORS},
        error_counts={error: int(tide["counts"][error]) for error in ERRORS},
        calibration=[(b["avg_confidence"], b["avg_accuracy"], b["count"]) for b in calibration["bins"] if b["count"]],
        calibration_error=float(calibration["ece"]),
        ap_by_objects=_ap_by_objects(counted, objects_of),
        worst=[image_ids[i] for i in order if wrong_of[i] + missed_of[i]],
        image_errors={image_ids[i]: (int(wrong_of[i]), int(missed_of[i])) for i in range(len(images))},
        label_suspects=[
            (image_ids[row["image_id"]], *(class_names[row[f"{side}_category_id"]] for side in ("gt", "dt")),
             float(row["dt_score"]))
            for row in suspects
            if row["type"] == "wrong_label" and row["dt_score"] > max(threshold, 0.5)
        ],
    )  # fmt: skip


def count(evaluator: CocoEvaluator) -> tuple[COCOeval, list[dict], NDArray]:
    """hotcoco's evaluation of what an evaluator holds, with its annotations and of each detection (N, 3) image, score
    and class. Images and classes go by their places in the evaluator's order. ValueError as `analyse`."""
    if not len(evaluator):
        raise ValueError("The evaluator has seen no image; update it first.")
    class_ids = np.array(list(evaluator.names()), dtype=np.int64)
    places = np.arange(len(class_ids))
    images, annotations, detections = as_coco(evaluator.images(), 0, class_ids, places)
    categories = [{"id": k, "name": str(k)} for k in places.tolist()]
    truth = COCO({"images": images, "annotations": annotations, "categories": categories})
    counted = COCOeval(truth, truth.load_res(detections), evaluator.iou_type)
    params = Params(evaluator.iou_type)
    params.max_dets = list(evaluator.max_dets)
    counted.params = params
    counted.evaluate()
    counted.accumulate()
    if isinstance(detections, list):  # of masks
        columns = ("image_id", "score", "category_id")
        return counted, annotations, np.array([[row[name] for name in columns] for row in detections]).reshape(-1, 3)
    return counted, annotations, detections[:, [0, 5, 6]]


def _curve(scores: NDArray, right: NDArray, num_targets: int) -> ClassCurve:
    order = np.argsort(-scores, kind="stable")
    scores, found = scores[order], np.cumsum(right[order])
    precision = found / np.arange(1, len(scores) + 1)
    recall = found / max(num_targets, 1)
    f1 = 2 * found / (np.arange(1, len(scores) + 1) + max(num_targets, 1))
    last = np.append(scores[1:] != scores[:-1], True)[: len(scores)]  # equal scores are kept or dropped together
    if not (len(scores) and num_targets and found[-1]):
        return ClassCurve(scores, precision, recall, f1, num_targets, None, 0.0)
    best = int(np.argmax(np.where(last, f1, -1.0)))
    below = scores[best + 1] if best + 1 < len(scores) else 0.0
    return ClassCurve(
        scores, precision, recall, f1, num_targets, float((scores[best] + below) / 2), float(f1[best])
    )  # fmt: skip


def _ap_by_objects(counted: Any, objects_of: NDArray) -> dict[str, tuple[float, int]]:
    slices = {}
    for low, high in _COUNTS:
        name = str(low) if low == high else f"{low} to {high}" if high < 10**9 else f"over {low - 1}"
        members = np.flatnonzero((low <= objects_of) & (objects_of <= high)).tolist()
        if members:
            slices[name] = members
    if not slices:
        return {}
    found = counted.slice_by(slices)
    return {name: (float(found[name]["AP"]), len(members)) for name, members in slices.items()}
