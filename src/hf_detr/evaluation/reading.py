"""What one image brings to the evaluation: its detections and its targets, read from any usual form and checked.

Everything ends as small numpy arrays in original pixels. The checks sit here, at the edge: an evaluation of
garbage gives a number that looks like any other.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

# legend: N detections and T targets of one image


class Targets(NamedTuple):
    """The ground truth of one image, in original pixels."""

    boxes_xywh_px: NDArray  # (T, 4) float64
    labels: NDArray  # (T,) int64
    areas_px: NDArray  # (T,) float64, of the object: COCO gives the mask's where there is one
    crowds: NDArray  # (T,) bool; detections on a crowd region count neither for nor against


class Detections(NamedTuple):
    """The detections of one image, in original pixels; float32 stays float32, which loses nothing."""

    boxes_xyxy_px: NDArray  # (N, 4)
    scores: NDArray  # (N,)
    labels: NDArray  # (N,) int64


_TARGET_KEYS = (
    "image_id",
    "class_labels",
    "boxes",
    "orig_size",
    "size",
    "area",
    "iscrowd",
    "objects",
    "annotations",
)


def to_host(items: Sequence[Mapping], keys: Sequence[str] | None = None) -> list[dict]:
    """The same dicts with every tensor as a numpy array; tensors on a device come over in one copy per dtype.

    `keys` are the entries wanted, and the others (masks) are left where they are; None is all the targets need.
    """
    keys = _TARGET_KEYS if keys is None else keys
    for position, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise TypeError(f"item {position} of the batch: expected a dict, got {type(item).__name__}.")
    wanted = [{key: item[key] for key in keys if key in item} for item in items]

    waiting: dict[tuple, list[tuple[dict, str]]] = {}
    for item in wanted:
        for key, value in item.items():
            if not isinstance(value, torch.Tensor):
                continue
            value = value.detach()
            # numpy has no bfloat16; float32 holds every bfloat16 and float16 exactly
            item[key] = value = value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
            if value.device.type == "cpu":
                item[key] = value.numpy()
            else:
                waiting.setdefault((value.device, value.dtype), []).append((item, key))

    for places in waiting.values():
        tensors = [item[key] for item, key in places]
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).cpu().numpy()
        ends = np.cumsum([tensor.numel() for tensor in tensors])
        for (item, key), tensor, part in zip(places, tensors, np.split(flat, ends[:-1]), strict=True):
            item[key] = part.reshape(tuple(tensor.shape))
    return wanted


def read_image_id(target: Mapping, position: int) -> int:
    """The image id of a target dict: an int, or one number in a tensor or a list."""
    if "image_id" not in target:
        raise ValueError(f"target {position} of the batch: no 'image_id'; got {sorted(target)}. Give each one.")
    value = np.asarray(target["image_id"])
    if value.size != 1 or value.dtype.kind not in "iu":
        raise TypeError(
            f"target {position} of the batch: 'image_id' must be one integer, got {target['image_id']!r}; "
            "number the images and keep their names in a column of their own."
        )
    return int(value.reshape(()))


def read_detections(detections: Mapping, place: str) -> Detections:
    """A result dict {scores (N,), labels (N,), boxes (N, 4) xyxy px} -> arrays. Errors name `place`."""
    missing = [key for key in ("scores", "labels", "boxes") if key not in detections]
    if missing:
        raise ValueError(
            f"{place}: the detections lack {', '.join(missing)}; give scores, labels and boxes, "
            "as post_process_object_detection does."
        )
    boxes = _boxes(detections["boxes"], place, "detection boxes")
    scores = _numbers(detections["scores"], place, "detection scores")
    labels = _integers(detections["labels"], place, "detection labels")
    if not len(boxes) == len(scores) == len(labels):
        raise ValueError(
            f"{place}: {len(boxes)} boxes, {len(scores)} scores and {len(labels)} labels; give one of each a detection."
        )
    inverted = np.flatnonzero((boxes[:, 2:] < boxes[:, :2]).any(axis=1))
    if inverted.size:
        box = boxes[inverted[0]].tolist()
        raise ValueError(
            f"{place}: detection {inverted[0]} has the box {box}, right of it left or bottom above top; "
            "boxes must be (left, top, right, bottom) in pixels, not xywh."
        )
    return Detections(boxes, scores, labels)


def read_targets(target: Mapping, place: str) -> Targets:
    """The ground truth of one image -> arrays in original pixels. ValueError or TypeError names `place`.

    Three forms: the processor's label dict {class_labels, boxes cxcywh in [0, 1], orig_size (h, w), and perhaps size,
    area, iscrowd}; a row {objects {bbox xywh px, category, and perhaps area, iscrowd}}, with `objects` a dict of lists
    or a list of dicts; COCO's {annotations [{bbox xywh px, category_id, and perhaps area, iscrowd}]}.
    """
    if "class_labels" in target:
        return _targets_of_labels(target, place)
    if "objects" in target:
        objects = target["objects"]
        columns = objects if isinstance(objects, Mapping) else _columns(objects, "category", place)
        return _targets_of_columns(columns, "category", place)
    if "annotations" in target:
        return _targets_of_columns(_columns(target["annotations"], "category_id", place), "category_id", place)
    raise ValueError(
        f"{place}: a target needs 'class_labels' and 'boxes' (the processor's), 'objects' (a row) or 'annotations' "
        f"(COCO); got the keys {sorted(target)}."
    )


def _targets_of_labels(target: Mapping, place: str) -> Targets:
    missing = [key for key in ("boxes", "orig_size") if key not in target]
    if missing:
        raise ValueError(f"{place}: the labels lack {' and '.join(missing)}; pass them as the processor made them.")
    boxes = _boxes(target["boxes"], place, "target boxes").astype(np.float64)  # cxcywh, of the visible image
    orig_h, orig_w = _size_hw(target["orig_size"], place, "orig_size")
    sides = boxes[:, 2:] * (orig_w, orig_h)
    boxes_xywh_px = np.concatenate((boxes[:, :2] * (orig_w, orig_h) - sides / 2, sides), axis=1)

    areas = sides.prod(axis=1)
    if "area" in target:
        if "size" not in target:
            raise ValueError(
                f"{place}: 'area' is counted in pixels of the resized image, and 'size' (h, w) is not there to scale "
                "it back; keep 'size' beside it, or leave out 'area' and the boxes' own is taken."
            )
        height, width = _size_hw(target["size"], place, "size")
        areas_resized_px = _numbers(target["area"], place, "target areas").astype(np.float64)
        areas = areas_resized_px * (orig_h * orig_w / (height * width))
    # an area of exactly 32**2 is small and medium; float32 on the way there and back must not decide that
    whole = np.round(areas)
    areas = np.where(np.abs(areas - whole) <= 1e-6 * whole, whole, areas)
    labels = _integers(target["class_labels"], place, "target labels")
    return _checked(boxes_xywh_px, labels, areas, target.get("iscrowd"), place)


def _targets_of_columns(columns: Mapping, category: str, place: str) -> Targets:
    missing = [key for key in ("bbox", category) if key not in columns]
    if missing:
        raise ValueError(f"{place}: the objects lack {' and '.join(missing)}; got {sorted(columns)}.")
    boxes_xywh_px = _boxes(columns["bbox"], place, "target boxes").astype(np.float64)
    labels = _integers(columns[category], place, f"target {category}")
    areas = boxes_xywh_px[:, 2:].prod(axis=1)
    if columns.get("area") is not None:
        areas = _numbers(columns["area"], place, "target areas").astype(np.float64)
    return _checked(boxes_xywh_px, labels, areas, columns.get("iscrowd"), place)


def _columns(objects: Sequence[Mapping], category: str, place: str) -> dict[str, list]:
    """A list of objects -> a dict of lists; `area` and `iscrowd` may be missing from all of them, or from some."""
    for index, item in enumerate(objects):
        if "bbox" not in item or category not in item:
            raise ValueError(f"{place}: object {index} needs 'bbox' and {category!r}; got {sorted(item)}.")
    boxes = [item["bbox"] for item in objects]
    areas = [item.get("area") for item in objects]
    if None in areas:
        sides = _boxes(boxes, place, "target boxes")[:, 2:].prod(axis=1).tolist()
        areas = [side if area is None else area for side, area in zip(sides, areas, strict=True)]
    crowds = [item.get("iscrowd") or 0 for item in objects]
    return {"bbox": boxes, category: [item[category] for item in objects], "area": areas, "iscrowd": crowds}


def _checked(boxes_xywh_px: NDArray, labels: NDArray, areas: NDArray, iscrowd, place: str) -> Targets:
    if iscrowd is None:
        crowds = np.zeros(len(labels), dtype=bool)
    else:
        crowds = _numbers(iscrowd, place, "target iscrowd").astype(bool)
    if not len(boxes_xywh_px) == len(labels) == len(areas) == len(crowds):
        raise ValueError(
            f"{place}: {len(boxes_xywh_px)} target boxes, {len(labels)} labels, {len(areas)} areas and {len(crowds)} "
            "iscrowd; give one of each an object."
        )
    for what, bad in (("box side", (boxes_xywh_px[:, 2:] < 0).any(axis=1)), ("area", areas < 0)):
        if bad.any():
            index = int(np.flatnonzero(bad)[0])
            raise ValueError(
                f"{place}: target {index} has a negative {what} (xywh {boxes_xywh_px[index].tolist()}, area "
                f"{areas[index]:g}); mend the annotation."
            )
    return Targets(boxes_xywh_px, labels, areas, crowds)


def _numbers(value, place: str, name: str) -> NDArray:
    """Finite numbers, one axis; float32 stays, everything else becomes float64."""
    array = _array(value, place, name)
    if array.size == 0:
        return np.zeros(0, np.float32)
    if array.ndim != 1 or array.dtype.kind not in "fiub":
        raise ValueError(f"{place}: {name} must be one row of numbers, got {array.dtype} of shape {array.shape}.")
    array = array if array.dtype == np.float32 else array.astype(np.float64)
    _finite(array, place, name)
    return array


def _integers(value, place: str, name: str) -> NDArray:
    array = _array(value, place, name)
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(
            f"{place}: {name} must be one row of class ids (integers), got {array.dtype} of shape {array.shape}."
        )
    return array.astype(np.int64)


def _boxes(value, place: str, name: str) -> NDArray:
    array = _array(value, place, name)
    if array.size == 0:
        return np.zeros((0, 4), np.float32)
    if array.ndim != 2 or array.shape[1] != 4 or array.dtype.kind not in "fiu":
        raise ValueError(f"{place}: {name} must be (N, 4) numbers, got {array.dtype} of shape {array.shape}.")
    array = array if array.dtype == np.float32 else array.astype(np.float64)
    _finite(array, place, name)
    return array


def _size_hw(value, place: str, name: str) -> tuple[float, float]:
    size = _numbers(value, place, name)
    if size.shape != (2,) or (size <= 0).any():
        raise ValueError(f"{place}: {name!r} must be a positive (height, width), got {size.tolist()}.")
    return float(size[0]), float(size[1])


def _array(value, place: str, name: str) -> NDArray:
    # a copy: what a caller does with his tensor after `update` must not reach into the evaluation
    try:
        return np.array(value)
    except ValueError as error:
        raise ValueError(f"{place}: {name} are ragged or not numbers ({error}); give rows of equal length.") from error


def _finite(array: NDArray, place: str, name: str) -> None:
    if not np.isfinite(array).all():
        index = int(np.argwhere(~np.isfinite(array))[0, 0])
        raise ValueError(
            f"{place}: {name} hold a NaN or an infinity, first at {index}: {array[index].tolist()}; "
            "look for a diverged model or a broken annotation."
        )
