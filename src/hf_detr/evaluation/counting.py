"""Precision and recall of a whole data set, counted by faster-coco-eval a group of classes at a time.

AP needs the detections of one class over all images and of no other class, so the Python objects that the library
wants exist for one group only, and memory stays near that of the arrays.
"""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from .reading import Detections, Targets

# legend: T IoU thresholds, R = 101 recall points, K classes, A area ranges, M detection limits

# faster-coco-eval's area ranges, in its order; 32**2 and 96**2 px part them
AREAS = ("all", "small", "medium", "large")

# detections handed over at a time, about 0.7 kB each as Python objects; one class is never divided. A group costs its
# images times its classes, so a few classes at a time are quicker than all
_DETECTIONS_AT_ONCE = 10_000


class Image(NamedTuple):
    """What the evaluation keeps of an image."""

    detections: Detections
    targets: Targets


class Counted(NamedTuple):
    """Everything the metrics are means of; -1 where a class has no target of that size."""

    precision: NDArray  # (T, R, K, A, M)
    recall: NDArray  # (T, K, A, M)
    num_targets: NDArray  # (K,) crowds not among them
    num_detections: NDArray  # (K,)
    num_crowds: int


def count(
    images: Sequence[Image], class_ids: Sequence[int], iou_thresholds: Sequence[float], max_dets: Sequence[int]
) -> Counted:
    """Match detections with targets in every image, in the order given; `class_ids` ascend and hold every label."""
    columns = _Columns(images, np.array(class_ids, dtype=np.int64))
    num_targets = np.bincount(columns.target_class[~columns.crowd], minlength=len(class_ids))
    num_detections = np.bincount(columns.detection_class, minlength=len(class_ids))

    shape = (len(iou_thresholds), 101, len(class_ids), len(AREAS), len(max_dets))
    precision, recall = np.full(shape, -1.0), np.full((shape[0], *shape[2:]), -1.0)
    # a class without targets has no AP whatever was detected: nothing to match
    with _no_garbage_collection():
        for group in _groups(np.flatnonzero(num_targets), num_detections):
            precision[:, :, group], recall[:, group] = _accumulate(columns, group, iou_thresholds, max_dets)
    return Counted(precision, recall, num_targets, num_detections, int(columns.crowd.sum()))


class _Columns:
    """Every detection and every target as columns, sorted by class: a group of classes is a few slices.

    Within a class they stay as they came, image by image: ties of the score fall as they do in pycocotools.
    """

    def __init__(self, images: Sequence[Image], class_ids: NDArray):
        self.detection_image, self.detection_class, order = _sorted_by_class(
            [image.detections.labels for image in images], class_ids
        )
        boxes_xyxy = np.concatenate([np.zeros((0, 4)), *(image.detections.boxes_xyxy_px for image in images)])
        self.detection_xywh = xywh(boxes_xyxy[order])
        self.score = np.concatenate([np.zeros(0), *(image.detections.scores for image in images)])[order]

        self.target_image, self.target_class, order = _sorted_by_class(
            [image.targets.labels for image in images], class_ids
        )
        self.target_xywh = np.concatenate([np.zeros((0, 4)), *(im.targets.boxes_xywh_px for im in images)])[order]
        self.target_area = np.concatenate([np.zeros(0), *(image.targets.areas_px for image in images)])[order]
        self.crowd = np.concatenate([np.zeros(0, bool), *(image.targets.crowds for image in images)])[order]

    def annotations(self, group: NDArray) -> list[dict]:
        """The targets of the classes in `group` as COCO annotations; ids start at 1, for 0 would mean unmatched."""
        columns = (self.target_image, self.target_class, self.target_xywh, self.target_area, self.crowd)
        rows = _rows(self.target_class, group, *columns)
        return [
            {"id": i, "image_id": image, "category_id": k, "bbox": box, "area": area, "iscrowd": int(crowd)}
            for i, (image, k, box, area, crowd) in enumerate(rows, start=1)
        ]

    def results(self, group: NDArray) -> list[dict]:
        """The detections of the classes in `group`; made here, for COCO.loadRes would add eight corners to each."""
        columns = (self.detection_image, self.detection_class, self.detection_xywh, self.score)
        rows = _rows(self.detection_class, group, *columns)
        return [
            {
                "id": i,
                "image_id": image,
                "category_id": k,
                "bbox": box,
                "area": box[2] * box[3],
                "score": score,
                "iscrowd": 0,
            }
            for i, (image, k, box, score) in enumerate(rows, start=1)
        ]


def _sorted_by_class(labels: list[NDArray], class_ids: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Labels image by image -> index of the image and of the class, sorted by class; and that order."""
    image = np.repeat(np.arange(len(labels)), [len(row) for row in labels])
    index_of_class = np.searchsorted(class_ids, np.concatenate([np.zeros(0, np.int64), *labels]))
    order = np.argsort(index_of_class, kind="stable")
    return image[order], index_of_class[order], order


def _rows(sorted_classes: NDArray, group: NDArray, *columns: NDArray) -> Iterator[tuple]:
    """The rows of the classes in `group`, as Python numbers and lists."""
    starts, ends = np.searchsorted(sorted_classes, group, "left"), np.searchsorted(sorted_classes, group, "right")
    chosen = np.concatenate([np.arange(start, end) for start, end in zip(starts, ends, strict=True)])
    return zip(*(column[chosen].tolist() for column in columns), strict=True)


def _groups(classes: NDArray, num_detections: NDArray) -> Iterator[NDArray]:
    """Runs of classes with at most `_DETECTIONS_AT_ONCE` detections together, or one class that has more."""
    start, held = 0, 0
    for i, k in enumerate(classes):
        if i > start and held + num_detections[k] > _DETECTIONS_AT_ONCE:
            yield classes[start:i]
            start, held = i, 0
        held += num_detections[k]
    if len(classes):
        yield classes[start:]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """The library's hundred thousands of dicts hold no cycles; looking for some in them takes as long as the rest."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _accumulate(
    columns: _Columns, group: NDArray, iou_thresholds: Sequence[float], max_dets: Sequence[int]
) -> tuple[NDArray, NDArray]:
    """Precision (T, R, K, A, M) and recall (T, K, A, M) of the classes in `group`."""
    annotations, results = columns.annotations(group), columns.results(group)
    images = [{"id": i} for i in sorted({row["image_id"] for rows in (annotations, results) for row in rows})]
    categories = [{"id": int(k), "name": str(k)} for k in group]
    truth = COCO({"images": images, "annotations": annotations, "categories": categories})
    found = COCO({"images": images, "annotations": results, "categories": categories})

    evaluation = COCOeval_faster(truth, found, iouType="bbox")
    evaluation.params.maxDets = list(max_dets)
    evaluation.params.iouThrs = np.array(iou_thresholds)
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])


def xywh(boxes_xyxy: NDArray) -> NDArray:
    """(N, 4) corners -> (N, 4) float64 top-left and size; float32 differences would move an IoU's seventh digit."""
    boxes_xyxy = boxes_xyxy.astype(np.float64)
    return np.concatenate((boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]), axis=1)
