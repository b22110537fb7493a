"""COCO average precision and recall: checked arrays per image while batches arrive, counted by hotcoco at the end.

The numbers are those of pycocotools, bit for bit.
"""

import json
import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hotcoco import Params, StreamingEval
from numpy.typing import NDArray

from .images import ImageEvaluator
from .reading import (
    Detections,
    Masks,
    Targets,
    read_detections,
    read_image_id,
    read_masks,
    read_target_masks,
    read_targets,
    to_host,
)
from .report import format_table

# legend: T IoU thresholds, R = 101 recall points, K classes, A area ranges, M detection limits

IOU_TYPES = ("bbox", "segm")
_AREAS = ("all", "small", "medium", "large")  # the order of the A axis; 32**2 and 96**2 px separate them
# hotcoco's state of a detection takes about ten times the array it came from, so few images and classes at a time
_IMAGES_AT_ONCE = 64
_DETECTIONS_AT_ONCE = 250_000


class Image(NamedTuple):
    """What the evaluation keeps of an image; masks where those are what is compared."""

    detections: Detections
    targets: Targets
    masks: Masks | None = None
    target_masks: Masks | None = None


class CocoEvaluator(ImageEvaluator):
    """Average precision and recall of detections over a data set, as pycocotools counts them.

    `class_names`: names by class id, as a list or {id: name}; then a label outside them is an error. None takes the
    labels as they come and calls them by number. `max_dets`: the numbers of detections per image and class that are
    looked at; the largest holds for every AP. `iou_thresholds`: in (0, 1], None for COCO's 0.50, 0.55, ..., 0.95.
    `iou_type`: "bbox" compares boxes, "segm" masks. `score_threshold`: detections that `post_process` leaves out.

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
        iou_type: str = "bbox",
        score_threshold: float = 0.0,
    ):
        if iou_type not in IOU_TYPES:
            raise ValueError(f"iou_type={iou_type!r}: expected 'bbox' for boxes or 'segm' for masks.")
        self.iou_type, self.score_threshold = iou_type, score_threshold
        self.max_dets = _max_dets(max_dets)
        self.iou_thresholds = _iou_thresholds(iou_thresholds)
        super().__init__(class_names)

    def update(self, detections: Sequence[Mapping], targets: Sequence[Mapping]) -> None:
        """Take in a batch: one result dict and one target an image, in the same order.

        `detections`: {scores (N,), labels (N,), boxes (N, 4) xyxy in original pixels}, tensors of any device, arrays
        or lists. `targets`: the processor's labels {image_id, class_labels, boxes cxcywh in [0, 1], orig_size, size,
        area, iscrowd}, rows {image_id, objects {bbox xywh px, category, area, iscrowd}}, or {image_id, annotations
        [COCO objects]} with class ids as `category_id`. `area` of the processor's labels is in resized pixels and is
        scaled back.

        For masks, `detections` have `masks` too, as `post_process_masks` gives them: COCO's encodings, or (N, H, W) of
        the original size; and every target has its mask, in `segmentation` of the objects or `masks` of the labels
        (which are scaled back: the rows are the exact ones).

        An image that comes again with the same targets, as distributed samplers pad their last batch, counts once: the
        first stays, and `num_duplicates` grows. With other targets it is another image, and a ValueError. The whole
        batch is checked before any of it is taken. Raises ValueError or TypeError with the image id for missing keys,
        unequal lengths, NaN, inverted boxes, labels outside `class_names`, and masks that are missing or of another
        size.
        """
        if len(detections) != len(targets):
            raise ValueError(
                f"{len(detections)} results for {len(targets)} targets; give one of each an image, in the same order."
            )
        with_masks = self.iou_type == "segm"
        detections = to_host(detections, ("scores", "labels", "boxes", *(["masks"] if with_masks else [])))
        targets = to_host(targets, with_masks=with_masks)
        read: list[tuple[int, Image]] = []
        for position, (result, target) in enumerate(zip(detections, targets, strict=True)):
            image_id = read_image_id(target, position)
            place = f"image {image_id}"
            image = Image(read_detections(result, place), read_targets(target, place))
            if with_masks:
                masks = read_masks(result, len(image.detections.labels), place)
                image = image._replace(masks=masks, target_masks=read_target_masks(target, masks.size_hw, place))
            self._check(image, place)
            read.append((image_id, image))
        self._take(read)

    def compute(self) -> dict:
        """The metrics, as floats in [0, 1], and -1 where there is nothing to measure, as pycocotools has it.

        map, map_50, map_75, map_small, map_medium, map_large (objects up to 32**2 px, up to 96**2, above), mar_{n} for
        each n of `max_dets`, mar_small, mar_medium, mar_large; num_images, num_targets (crowds not counted),
        num_crowds, num_detections, num_duplicates; per_class {name: the same metrics, num_targets, num_detections}.
        Of this process's images alone, unless `synchronize_between_processes` went before.
        """
        return super().compute()

    def post_process(self, processor: Any, outputs: Any, target_sizes: Any, processed_sizes: Any) -> list[dict]:
        """The results that `update` takes, of a model's outputs."""
        options = {"threshold": self.score_threshold, "target_sizes": target_sizes}
        if self.iou_type == "bbox":
            return processor.post_process_object_detection(outputs, **options)
        return processor.post_process_masks(outputs, processed_sizes=processed_sizes, **options)

    def table(self) -> str:
        """The metrics as plain text: a summary, and a row a class."""
        return format_table(self.compute(), self.max_dets)

    def write_results(self, path: str | Path, category_ids: Sequence[int] | Mapping[int, int] | None = None) -> int:
        """Write a COCO results file [{image_id, category_id, bbox xywh px, score}, ...]; returns how many there are.

        With masks, each has its `segmentation` too, compressed.

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
                (boxes, scores, labels), _, masks, _ = self._images[image_id]
                columns = (column.tolist() for column in (_xywh(boxes), scores, labels))
                for i, (box, score, label) in enumerate(zip(*columns, strict=True)):
                    row = {"image_id": image_id, "category_id": category_of[label], "bbox": box, "score": score}
                    if masks is not None:
                        size, counts = list(masks.size_hw), masks.counts[i].decode("ascii")
                        row["segmentation"] = {"size": size, "counts": counts}
                    file.write((",\n" if written else "\n") + json.dumps(row))
                    written += 1
            file.write("\n]\n")
        return written

    def images(self) -> list[Image]:
        """What is kept of the images, in the order of `image_ids()`."""
        return self._in_order()

    def names(self) -> dict[int, str]:
        """Class names by id, ascending; the numbers that were seen where no names were given."""
        both = [part.labels for image in self._images.values() for part in (image.detections, image.targets)]
        return self._class_names(np.unique(np.concatenate(both)).tolist() if both else ())

    def _check(self, image: Image, place: str) -> None:
        self._check_labels(image.detections.labels.tolist(), f"{place}: a detection")
        self._check_labels(image.targets.labels.tolist(), f"{place}: a target")
        if self.iou_type == "bbox":
            return
        if image.masks is None or image.target_masks is None:
            raise ValueError(f"{place}: has no masks; it comes from an evaluator with iou_type='bbox'.")
        found_hw, true_hw = image.masks.size_hw, image.target_masks.size_hw
        if image.masks.counts and image.target_masks.counts and found_hw != true_hw:
            raise ValueError(
                f"{place}: predicted masks of {found_hw} and true ones of {true_hw} (height, width); give "
                "post_process_masks the original sizes as target_sizes."
            )

    def _same_truth(self, image: Image, other: Image) -> bool:
        known, new = image.targets, other.targets
        return np.array_equal(known.labels, new.labels) and np.allclose(
            known.boxes_xywh_px, new.boxes_xywh_px, rtol=1e-4, atol=1e-2
        )

    def _evaluate(self) -> dict:
        images, names = self.images(), self.names()
        class_ids = np.array(list(names), dtype=np.int64)
        num_targets, num_detections = np.zeros(len(names), int), np.zeros(len(names), int)
        for image in images:
            num_targets += _class_counts(image.targets.labels[~image.targets.crowds], class_ids)
            num_detections += _class_counts(image.detections.labels, class_ids)
        precision, recall = self._count(images, class_ids, num_detections)
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

    def _count(self, images: Sequence[Image], class_ids: NDArray, num_detections: NDArray) -> tuple[NDArray, NDArray]:
        """Precision (T, R, K, A) at the largest limit and recall (T, K, A, M), in order of the images and classes.

        -1 where a class has no target of that size. A class needs no other class, so groups of them are counted in
        turn.
        """
        params = Params(self.iou_type)
        params.iou_thrs, params.max_dets = list(self.iou_thresholds), list(self.max_dets)
        num_classes, num_thresholds = len(class_ids), len(self.iou_thresholds)
        precision = np.full((num_thresholds, 101, num_classes, len(_AREAS)), -1.0)
        recall = np.full((num_thresholds, num_classes, len(_AREAS), len(self.max_dets)), -1.0)
        num_groups = min(num_classes, 1 + int(num_detections.sum()) // _DETECTIONS_AT_ONCE)
        for group in np.array_split(np.arange(num_classes), num_groups) if num_groups else ():
            categories = [{"id": k, "name": str(k)} for k in group.tolist()]
            stream = StreamingEval(categories, iou_type=self.iou_type, params=params)
            for start in range(0, len(images), _IMAGES_AT_ONCE):
                stream.update(*as_coco(images[start : start + _IMAGES_AT_ONCE], start, class_ids, group))
            evaluation = stream.finalize()
            evaluation.accumulate()
            counted = evaluation.eval
            precision[:, :, group] = counted["precision"][..., -1]
            recall[:, group] = counted["recall"]
        return precision, recall


def as_coco(
    images: Sequence[Image], start: int, class_ids: NDArray, group: NDArray
) -> tuple[list[dict], list[dict], NDArray | list[dict]]:
    """Of the classes in `group`: images, annotations, and detections, (N, 7) image, xywh px, score, class, or dicts.

    Images and classes go by their position: ids of any size survive in float64, and 0 is an id like any other.
    """
    numbers = range(start, start + len(images))
    boxes_xyxy, scores, labels = map(np.concatenate, zip(*(image.detections for image in images), strict=True))
    k = np.searchsorted(class_ids, labels)
    number = np.repeat(numbers, [len(image.detections.labels) for image in images])
    in_group = (group[0] <= k) & (k <= group[-1])
    detections: Any = np.column_stack((number, _xywh(boxes_xyxy), scores, k))[in_group]
    masks = _chosen([image.masks for image in images], in_group)
    if masks is not None:  # without boxes: their areas would decide what is small
        columns = (*(column[in_group].tolist() for column in (number, k, scores)), masks)
        names = ("image_id", "category_id", "score", "segmentation")
        detections = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    names = ("boxes_xywh_px", "labels", "areas_px", "crowds")
    columns = (np.concatenate([getattr(image.targets, name) for image in images]) for name in names)
    boxes_xywh, labels, areas, crowds = columns
    k = np.searchsorted(class_ids, labels)
    number = np.repeat(numbers, [len(image.targets.labels) for image in images])
    in_group = (group[0] <= k) & (k <= group[-1])
    rows = zip(*(column[in_group].tolist() for column in (number, k, boxes_xywh, areas, crowds)), strict=True)
    names = ("image_id", "category_id", "bbox", "area", "iscrowd", "id")
    annotations = [dict(zip(names, (*row, i), strict=True)) for i, row in enumerate(rows, start=1)]
    masks = _chosen([image.target_masks for image in images], in_group)
    for annotation, mask in zip(annotations, masks or (), strict=masks is not None):
        annotation["segmentation"] = mask
    return [{"id": number} for number in numbers], annotations, detections


def _chosen(masks: Sequence[Masks | None], kept: NDArray) -> list[dict[str, Any]] | None:
    """The encodings of several images' masks that are `kept`; None where the images have none."""
    if any(one is None for one in masks):
        return None
    every = [(one.size_hw, counts) for one in masks for counts in one.counts]
    return [{"size": list(every[i][0]), "counts": every[i][1]} for i in np.flatnonzero(kept)]


def _class_counts(labels: NDArray, class_ids: NDArray) -> NDArray:
    return np.bincount(np.searchsorted(class_ids, labels), minlength=len(class_ids))


def _xywh(boxes_xyxy: NDArray) -> NDArray:
    """(N, 4) corners -> (N, 4) float64 top-left and size; float32 differences would move an IoU's seventh digit."""
    boxes_xyxy = boxes_xyxy.astype(np.float64)
    return np.concatenate((boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]), axis=1)


def _mean(values: NDArray) -> float:
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0


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
