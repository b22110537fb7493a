"""COCO average precision and recall: checked arrays per image while batches arrive, counted by hotcoco at the end.

The numbers are those of pycocotools, bit for bit.
"""

import copy
import json
import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch.distributed as dist
from hotcoco import Params, StreamingEval
from numpy.typing import NDArray

from .reading import Detections, Targets, read_detections, read_image_id, read_targets, to_host
from .report import format_table

# legend: T IoU thresholds, R = 101 recall points, K classes, A area ranges, M detection limits

_AREAS = ("all", "small", "medium", "large")  # the order of the A axis; 32**2 and 96**2 px separate them
# hotcoco's state of a detection takes about ten times the array it came from, so few images and classes at a time
_IMAGES_AT_ONCE = 64
_DETECTIONS_AT_ONCE = 250_000


class Image(NamedTuple):
    """What the evaluation keeps of an image."""

    detections: Detections
    targets: Targets


class CocoEvaluator:
    """Average precision and recall of detections over a data set, as pycocotools counts them.

    `class_names`: names by class id, as a list or {id: name}; then a label outside them is an error. None takes the
    labels as they come and calls them by number. `max_dets`: the numbers of detections per image and class that are
    looked at; the largest holds for every AP. `iou_thresholds`: in (0, 1], None for COCO's 0.50, 0.55, ..., 0.95.

        evaluator = CocoEvaluator(class_names=model.config.id2label)
        for batch in loader:
            results = processor.post_process_object_detection(model(...), threshold=0.0, target_sizes=...)
            evaluator.update(results, batch["labels"])
        print(evaluator.table())

    Keep the threshold of the post-processing at 0: AP is made of the low scores too. Crowd regions (`iscrowd`) are
    ignored regions in the sense of COCO; a processor that drops them from its labels makes detections on them false
    positives, so pass the rows of the data set as targets where crowds matter.
    """

    def __init__(
        self,
        class_names: Sequence[str] | Mapping[int, str] | None = None,
        max_dets: Sequence[int] = (1, 10, 100),
        iou_thresholds: Sequence[float] | None = None,
    ):
        self._names = None if class_names is None else _names_by_id(class_names)
        self.max_dets = _max_dets(max_dets)
        self.iou_thresholds = _iou_thresholds(iou_thresholds)
        self.reset()

    def reset(self) -> None:
        """Forget every image."""
        self._images: dict[int, Image] = {}
        self._unshared: list[int] = []  # image ids that the other processes have not been told of
        self._unshared_duplicates = 0
        self.num_duplicates = 0
        self._computed: dict | None = None

    def __len__(self) -> int:
        """Images seen."""
        return len(self._images)

    def update(self, detections: Sequence[Mapping], targets: Sequence[Mapping]) -> None:
        """Take in a batch: one result dict and one target an image, in the same order.

        `detections`: {scores (N,), labels (N,), boxes (N, 4) xyxy in original pixels}, tensors of any device, arrays
        or lists. `targets`: the processor's labels {image_id, class_labels, boxes cxcywh in [0, 1], orig_size, size,
        area, iscrowd}, rows {image_id, objects {bbox xywh px, category, area, iscrowd}}, or {image_id, annotations
        [COCO objects]} with class ids as `category_id`. `area` of the processor's labels is in resized pixels and is
        scaled back.

        An image that comes again with the same targets, as distributed samplers pad their last batch, counts once: the
        first stays, and `num_duplicates` grows. With other targets it is another image, and a ValueError. The whole
        batch is checked before any of it is taken. Raises ValueError or TypeError with the image id for missing keys,
        unequal lengths, NaN, inverted boxes, and labels outside `class_names`.
        """
        if len(detections) != len(targets):
            raise ValueError(
                f"{len(detections)} results for {len(targets)} targets; give one of each an image, in the same order."
            )
        detections = to_host(detections, ("scores", "labels", "boxes"))
        targets = to_host(targets)
        read: list[tuple[int, Image]] = []
        for position, (result, target) in enumerate(zip(detections, targets, strict=True)):
            image_id = read_image_id(target, position)
            place = f"image {image_id}"
            image = Image(read_detections(result, place), read_targets(target, place))
            self._check_labels(image.detections.labels, f"{place}: a detection")
            self._check_labels(image.targets.labels, f"{place}: a target")
            read.append((image_id, image))
        self._take(read)

    def state(self) -> dict:
        """All that was taken in, picklable, for `merge` of another evaluator."""
        return {"images": dict(self._images), "num_duplicates": self.num_duplicates}

    def merge(self, state: Mapping) -> None:
        """Take in the `state()` of another evaluator; images that both have seen count once, this one's first."""
        for image_id, image in state["images"].items():
            self._check_labels(image.detections.labels, f"image {image_id}: a detection")
            self._check_labels(image.targets.labels, f"image {image_id}: a target")
        self._take(state["images"].items())
        self.num_duplicates += state["num_duplicates"]
        self._unshared_duplicates += state["num_duplicates"]

    def synchronize_between_processes(self) -> None:
        """Give every process the images of all, under torch.distributed; every process must call it. Else nothing.

        Only what came since the last call travels. Images that several processes saw count once, the lowest rank's.
        """
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return
        mine = [(image_id, self._images[image_id]) for image_id in self._unshared]
        everyones: list = [None] * dist.get_world_size()
        dist.all_gather_object(everyones, (mine, self._unshared_duplicates))

        for image_id in self._unshared:  # back to what all processes hold in common, then everything in order of rank
            del self._images[image_id]
        self.num_duplicates -= self._unshared_duplicates
        for images, num_duplicates in everyones:
            self._take(images)
            self.num_duplicates += num_duplicates
        self._unshared, self._unshared_duplicates = [], 0

    def compute(self) -> dict:
        """The metrics, as floats in [0, 1], and -1 where there is nothing to measure, as pycocotools has it.

        map, map_50, map_75, map_small, map_medium, map_large (objects up to 32**2 px, up to 96**2, above), mar_{n} for
        each n of `max_dets`, mar_small, mar_medium, mar_large; num_images, num_targets (crowds not counted),
        num_crowds, num_detections, num_duplicates; per_class {name: the same metrics, num_targets, num_detections}.
        Of this process's images alone, unless `synchronize_between_processes` went before.
        """
        if self._computed is None:
            self._computed = self._evaluate()
        return copy.deepcopy(self._computed)

    def summary(self) -> dict[str, float]:
        """`compute()` without the classes: one flat dict of numbers, as trainers log them."""
        return {name: value for name, value in self.compute().items() if name != "per_class"}

    def table(self) -> str:
        """The metrics as plain text: a summary, and a row a class."""
        return format_table(self.compute(), self.max_dets)

    def to_json(self, path: str | Path | None = None) -> str:
        """`compute()` as JSON text, and into the file `path` if one is given."""
        text = json.dumps(self.compute(), indent=2)
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    def write_results(self, path: str | Path, category_ids: Sequence[int] | Mapping[int, int] | None = None) -> int:
        """Write a COCO results file [{image_id, category_id, bbox xywh px, score}, ...]; returns how many there are.

        `category_ids`: the data set's own category id of each class id; None writes the class ids. Nothing is rounded:
        the file has the AP of this evaluator. ValueError for a class without a category id.
        """
        if category_ids is not None and not isinstance(category_ids, Mapping):
            category_ids = dict(enumerate(category_ids))
        classes = {int(label) for image in self._images.values() for label in np.unique(image.detections.labels)}
        if category_ids is not None and not classes <= set(category_ids):
            raise ValueError(
                f"category_ids lacks the classes {sorted(classes - set(category_ids))}; "
                "give every class its category id."
            )
        category_of = {label: label if category_ids is None else int(category_ids[label]) for label in classes}

        written = 0
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write("[")
            for image_id in sorted(self._images):
                boxes, scores, labels = self._images[image_id].detections
                boxes_xywh_px = _xywh(boxes)
                for box, score, label in zip(boxes_xywh_px.tolist(), scores.tolist(), labels.tolist(), strict=True):
                    row = {"image_id": image_id, "category_id": category_of[label], "bbox": box, "score": score}
                    file.write((",\n" if written else "\n") + json.dumps(row))
                    written += 1
            file.write("\n]\n")
        return written

    def _take(self, images) -> None:
        images = list(images)
        new: dict[int, Image] = {}
        for image_id, image in images:
            known = new.get(image_id) or self._images.get(image_id)
            if known is not None and not _same_targets(known.targets, image.targets):
                raise ValueError(
                    f"image {image_id}: came twice with different targets, so two images carry one id; "
                    "give every image an id of its own."
                )
            if known is None:
                new[image_id] = image
        self._images.update(new)
        self._unshared.extend(new)
        self.num_duplicates += len(images) - len(new)
        self._unshared_duplicates += len(images) - len(new)
        self._computed = None

    def _check_labels(self, labels: NDArray, place: str) -> None:
        seen = set(labels.tolist())
        unknown = {label for label in seen if label < 0} if self._names is None else seen - self._names.keys()
        if unknown:
            known = "0 or above" if self._names is None else _in_words(self._names)
            raise ValueError(
                f"{place} has the label {min(unknown)}, and the known classes are {known}; give class_names every "
                "class, and labels as contiguous class ids rather than the data set's category ids."
            )

    def _class_names(self) -> dict[int, str]:
        if self._names is not None:
            return self._names
        seen = {
            int(label)
            for image in self._images.values()
            for labels in (image.detections.labels, image.targets.labels)
            for label in np.unique(labels)
        }
        return {label: str(label) for label in sorted(seen)}

    def _evaluate(self) -> dict:
        images = [self._images[image_id] for image_id in sorted(self._images)]
        names = self._class_names()
        class_ids = np.array(list(names), dtype=np.int64)
        num_targets, num_detections = np.zeros(len(names), int), np.zeros(len(names), int)
        for image in images:
            num_targets += _class_counts(image.targets.labels[~image.targets.crowds], class_ids)
            num_detections += _class_counts(image.detections.labels, class_ids)
        precision, recall = _count(images, class_ids, num_detections, self.iou_thresholds, self.max_dets)
        result = self._metrics(precision, recall)
        result |= {
            "num_images": len(images),
            "num_targets": int(num_targets.sum()),
            "num_crowds": sum(int(image.targets.crowds.sum()) for image in images),
            "num_detections": int(num_detections.sum()),
            "num_duplicates": self.num_duplicates,
        }
        result["per_class"] = {
            name: self._metrics(precision[:, :, [k]], recall[:, [k]])
            | {"num_targets": int(num_targets[k]), "num_detections": int(num_detections[k])}
            for k, name in enumerate(names.values())
        }
        return result

    def _metrics(self, precision: NDArray, recall: NDArray) -> dict[str, float]:
        def at(threshold: float) -> NDArray:
            return precision[np.isclose(self.iou_thresholds, threshold), ..., 0]

        metrics = {"map": _mean(precision[..., 0]), "map_50": _mean(at(0.5)), "map_75": _mean(at(0.75))}
        metrics |= {f"map_{area}": _mean(precision[..., a]) for a, area in enumerate(_AREAS) if area != "all"}
        metrics |= {f"mar_{limit}": _mean(recall[..., 0, m]) for m, limit in enumerate(self.max_dets)}
        metrics |= {f"mar_{area}": _mean(recall[..., a, -1]) for a, area in enumerate(_AREAS) if area != "all"}
        return metrics


def _count(
    images: Sequence[Image],
    class_ids: NDArray,
    num_detections: NDArray,
    iou_thresholds: Sequence[float],
    max_dets: Sequence[int],
) -> tuple[NDArray, NDArray]:
    """Precision (T, R, K, A) at the largest limit and recall (T, K, A, M), in order of the images and classes given.

    -1 where a class has no target of that size. A class needs no other class, so groups of them are counted in turn.
    """
    params = Params("bbox")
    params.iou_thrs, params.max_dets = list(iou_thresholds), list(max_dets)
    num_classes, num_thresholds = len(class_ids), len(iou_thresholds)
    precision = np.full((num_thresholds, 101, num_classes, len(_AREAS)), -1.0)
    recall = np.full((num_thresholds, num_classes, len(_AREAS), len(max_dets)), -1.0)
    num_groups = min(num_classes, 1 + int(num_detections.sum()) // _DETECTIONS_AT_ONCE)
    for group in np.array_split(np.arange(num_classes), num_groups) if num_groups else ():
        stream = StreamingEval([{"id": k, "name": str(k)} for k in group.tolist()], params=params)
        for start in range(0, len(images), _IMAGES_AT_ONCE):
            stream.update(*_as_coco(images[start : start + _IMAGES_AT_ONCE], start, class_ids, group))
        evaluation = stream.finalize()
        evaluation.accumulate()
        counted = evaluation.eval
        precision[:, :, group] = counted["precision"][..., -1]
        recall[:, group] = counted["recall"]
    return precision, recall


def _as_coco(images: Sequence[Image], start: int, class_ids: NDArray, group: NDArray) -> tuple[list, list, NDArray]:
    """Of the classes in `group`: images, annotations, and detections (N, 7) image, xywh px, score, class.

    Images and classes go by their position: ids of any size survive in float64, and 0 is an id like any other.
    """
    numbers = range(start, start + len(images))
    boxes_xyxy, scores, labels = map(np.concatenate, zip(*(image.detections for image in images), strict=True))
    k = np.searchsorted(class_ids, labels)
    number = np.repeat(numbers, [len(image.detections.labels) for image in images])
    detections = np.column_stack((number, _xywh(boxes_xyxy), scores, k))[(group[0] <= k) & (k <= group[-1])]

    names = ("boxes_xywh_px", "labels", "areas_px", "crowds")
    columns = (np.concatenate([getattr(image.targets, name) for image in images]) for name in names)
    boxes_xywh, labels, areas, crowds = columns
    k = np.searchsorted(class_ids, labels)
    number = np.repeat(numbers, [len(image.targets.labels) for image in images])
    in_group = (group[0] <= k) & (k <= group[-1])
    rows = zip(*(column[in_group].tolist() for column in (number, k, boxes_xywh, areas, crowds)), strict=True)
    names = ("image_id", "category_id", "bbox", "area", "iscrowd", "id")
    annotations = [dict(zip(names, (*row, i), strict=True)) for i, row in enumerate(rows, start=1)]
    return [{"id": number} for number in numbers], annotations, detections


def _class_counts(labels: NDArray, class_ids: NDArray) -> NDArray:
    return np.bincount(np.searchsorted(class_ids, labels), minlength=len(class_ids))


def _xywh(boxes_xyxy: NDArray) -> NDArray:
    """(N, 4) corners -> (N, 4) float64 top-left and size; float32 differences would move an IoU's seventh digit."""
    boxes_xyxy = boxes_xyxy.astype(np.float64)
    return np.concatenate((boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]), axis=1)


def _mean(values: NDArray) -> float:
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0


def _same_targets(known: Targets, other: Targets) -> bool:
    return np.array_equal(known.labels, other.labels) and np.allclose(
        known.boxes_xywh_px, other.boxes_xywh_px, rtol=1e-4, atol=1e-2
    )


def _in_words(names: Mapping[int, str]) -> str:
    shown = [f"{label} ({name})" for label, name in names.items()]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "...", shown[-1]]) or "none"


def _names_by_id(class_names: Sequence[str] | Mapping[int, str]) -> dict[int, str]:
    if isinstance(class_names, str):
        raise TypeError(f"class_names must be a list of names or {{id: name}}, got the string {class_names!r}.")
    items = class_names.items() if isinstance(class_names, Mapping) else enumerate(class_names)
    names = {int(label): str(name) for label, name in items}
    if min(names, default=0) < 0:
        raise ValueError(f"class_names has the class id {min(names)}; ids start at 0.")
    shared = {name for name in names.values() if sum(name == other for other in names.values()) > 1}
    # per-class results are told apart by name, so names that two classes share get their id
    return {label: f"{names[label]} ({label})" if names[label] in shared else names[label] for label in sorted(names)}


def _max_dets(max_dets: Sequence[int]) -> tuple[int, ...]:
    limits = tuple(operator.index(limit) for limit in max_dets)
    if not limits or min(limits) < 1 or len(set(limits)) != len(limits):
        raise ValueError(f"max_dets must be different numbers of at least 1, got {tuple(max_dets)}; e.g. (1, 10, 100).")
    return tuple(sorted(limits))


def _iou_thresholds(thresholds: Sequence[float] | None) -> tuple[float, ...]:
    if thresholds is None:
        return tuple(np.linspace(0.5, 0.95, 10).tolist())  # linspace, not arange: pycocotools' very numbers
    values = tuple(sorted(float(threshold) for threshold in thresholds))
    if not values or not all(math.isfinite(value) and 0 < value <= 1 for value in values):
        raise ValueError(f"iou_thresholds must lie in (0, 1], got {list(thresholds)}; e.g. [0.5, 0.75].")
    return values
