"""Annotations of one image -> the label dict that the losses read.

A label never depends on the other images of its batch: boxes are fractions of the *visible* image (resized, not
padded). Stock transformers makes them fractions of the padded canvas, so that there they move with the batch.
"""

import operator
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from hotcoco import mask as coco_mask
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvF

from ..boxes import xyxy_to_cxcywh

_REMEDY = "Correct it, or pass on_bad_box='drop' or 'clip' (both count what they leave out)."


def prepare_labels(
    annotation: Mapping[str, Any],
    place: str,
    image_hw: tuple[int, int],
    visible_hw: tuple[int, int],
    canvas_hw: tuple[int, int],
    *,
    boxes_as_fractions: bool,
    on_bad_box: str,
    with_masks: bool,
) -> dict[str, Tensor]:
    """One annotation dict -> class_labels, boxes, area, iscrowd, image_id, orig_size, size (and masks), on the CPU.

    Takes COCO's form {"image_id", "annotations": [{"bbox": [x, y, width, height] px, "category_id", "area"?,
    "iscrowd"?, "segmentation"?}, ...]} and the columns of data sets on the Hub, {"image_id", "objects": {"bbox",
    "category", "area"?, "iscrowd"?, "segmentation"?}}. Crowds are left out, as the original does for training. Boxes
    are clipped to the image.

    Args:
        place: names the annotation in errors, such as "annotations[3]".
        image_hw: of the image as annotated; visible_hw: after resizing; canvas_hw: after padding.
        boxes_as_fractions: cxcywh in [0, 1] of the visible image; else xyxy in pixels of the resized image.
        on_bad_box: for boxes not finite, without width or height, or entirely outside the image: "error" raises,
            "drop" leaves them out, "clip" keeps what clipping leaves of them; the last two warn with a count.

    Returns:
        class_labels (T,) int64; boxes (T, 4) float32; area (T,) float32 in squared pixels of the resized image, from
        the box where none is given; iscrowd (T,) int64, all 0; image_id (1,) int64; orig_size and size (2,) int64,
        (height, width) before and after resizing (the padding is not in it: stock writes the padded size, from which
        nobody can undo the scale); masks (T, canvas height, canvas width) bool, zero on the padding.

    Raises:
        ValueError: for bad values, naming image_id, index, value and remedy.
        TypeError: for an annotation of another form.
    """
    image_id = _image_id(annotation, place)
    place = f"{place} (image_id {image_id})"
    objects = [obj for obj in _objects(annotation, place) if not obj[1].get("iscrowd", 0)]
    height, width = image_hw

    classes = np.array([_category(obj, f"{place}: object {i}") for i, obj in objects], dtype=np.int64)
    boxes_xywh_px = np.array([_bbox(obj, f"{place}: object {i}") for i, obj in objects], dtype=np.float64).reshape(
        -1, 4
    )
    boxes_px = boxes_xywh_px.copy()  # xyxy
    with np.errstate(invalid="ignore"):  # inf - inf: caught as a bad box
        boxes_px[:, 2:] += boxes_px[:, :2]
        boxes_px = np.clip(boxes_px, 0, [width, height, width, height])
        has_area = ((boxes_px[:, 2:] > boxes_px[:, :2]) & (boxes_xywh_px[:, 2:] > 0)).all(axis=1)
    good = has_area if on_bad_box == "clip" else has_area & np.isfinite(boxes_xywh_px).all(axis=1)
    if not good.all():
        _report_bad_boxes(
            [objects[k][0] for k in np.flatnonzero(~good)], boxes_xywh_px[~good], place, image_hw, on_bad_box
        )
    objects, classes, boxes_px = [objects[k] for k in np.flatnonzero(good)], classes[good], boxes_px[good]

    box_area = np.prod(boxes_px[:, 2:] - boxes_px[:, :2], axis=1)
    area_px = np.array(
        [_area(obj, own, f"{place}: object {i}") for (i, obj), own in zip(objects, box_area, strict=True)]
    )
    scale_hw = np.array(visible_hw) / np.array(image_hw)
    unit_wh = np.array([width, height]) if boxes_as_fractions else 1 / scale_hw[::-1]
    boxes = torch.from_numpy(boxes_px / np.tile(unit_wh, 2))  # float64 until the last step
    if boxes_as_fractions:
        boxes = xyxy_to_cxcywh(boxes)

    labels = {
        "image_id": torch.tensor([image_id], dtype=torch.int64),
        "class_labels": torch.from_numpy(classes),
        "boxes": boxes.to(torch.float32),
        "area": torch.from_numpy(area_px * scale_hw.prod()).to(torch.float32),
        "iscrowd": torch.zeros(len(classes), dtype=torch.int64),
        "orig_size": torch.tensor(image_hw, dtype=torch.int64),
        "size": torch.tensor(visible_hw, dtype=torch.int64),
    }
    if with_masks:
        rles = [_rle(obj, image_hw, f"{place}: object {i}") for i, obj in objects]
        labels["masks"] = _masks(rles, image_hw, visible_hw, canvas_hw)
    return labels


def _image_id(annotation: Any, place: str) -> int:
    if not isinstance(annotation, Mapping):
        raise TypeError(
            f"{place}: expected a dict with image_id and annotations (or objects), got {type(annotation).__name__}."
        )
    if "image_id" not in annotation:
        raise ValueError(f"{place}: no image_id, only {_names(annotation)}; give each image an integer of its own.")
    value = annotation["image_id"]
    try:
        return _integer(value)
    except TypeError:
        raise TypeError(f"{place}: image_id {value!r} is no integer; number the images.") from None


def _objects(annotation: Mapping[str, Any], place: str) -> list[tuple[int, Mapping[str, Any]]]:
    """The objects with their indices; a dict of columns becomes one dict an object, with COCO's names."""
    key = "annotations" if "annotations" in annotation else "objects"
    if key not in annotation:
        if "segments_info" in annotation:
            raise ValueError(f"{place}: panoptic annotations (segments_info) are not supported yet; give boxes.")
        raise ValueError(f"{place}: neither annotations nor objects, only {_names(annotation)}.")
    objects = annotation[key]
    if isinstance(objects, Mapping):
        lengths = {name: len(column) for name, column in objects.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{place}: the columns of {key} differ in length: {lengths}; each needs one entry a box.")
        objects = [dict(zip(objects, row, strict=True)) for row in zip(*objects.values(), strict=True)]
    if isinstance(objects, (str, bytes)) or not isinstance(objects, Sequence):
        raise TypeError(f"{place}: {key} is {type(objects).__name__}; expected a list of dicts or a dict of lists.")
    for i, obj in enumerate(objects):
        if not isinstance(obj, Mapping):
            raise TypeError(f"{place}: object {i} is {type(obj).__name__}; expected a dict with bbox and category_id.")
    return list(enumerate(objects))


def _bbox(obj: Mapping[str, Any], place: str) -> list[float]:
    if "bbox" not in obj:
        raise ValueError(f"{place} has no bbox, only {_names(obj)}; give [x, y, width, height] in pixels.")
    try:
        bbox = [float(value) for value in obj["bbox"]]
    except (TypeError, ValueError):
        bbox = []
    if len(bbox) != 4:
        raise ValueError(f"{place}: bbox {obj['bbox']!r}; expected four numbers [x, y, width, height] in pixels.")
    return bbox


def _category(obj: Mapping[str, Any], place: str) -> int:
    name = "category_id" if "category_id" in obj else "category"
    if name not in obj:
        raise ValueError(f"{place} has no category_id, only {_names(obj)}; give the number of its class, from 0.")
    try:
        category = _integer(obj[name])
    except TypeError:
        raise TypeError(f"{place}: {name} {obj[name]!r} is no integer; map names to numbers with label2id.") from None
    if category < 0:
        raise ValueError(f"{place}: {name} {category} is negative; classes are numbered from 0.")
    return category


def _area(obj: Mapping[str, Any], box_area: float, place: str) -> float:
    area = obj.get("area")
    if area is None:
        return float(box_area)
    area = float(area)
    if not np.isfinite(area) or area < 0:
        raise ValueError(f"{place}: area {area}; expected squared pixels, or no area to have the box's own.")
    return area


def _integer(value: Any) -> int:
    """A whole number in any dress (numpy, 0-d or 1-element tensor, 3.0) as int; TypeError for anything else."""
    if isinstance(value, (np.ndarray, Tensor)) and tuple(value.shape) in ((), (1,)):
        value = value.item()
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return int(value)
    if isinstance(value, (bool, np.bool_)):
        raise TypeError("a truth value is no number")
    return operator.index(value)


def _report_bad_boxes(
    indices: list[int], boxes_xywh_px: np.ndarray, place: str, image_hw: tuple[int, int], on_bad_box: str
) -> None:
    x, y, w, h = boxes_xywh_px[0]
    if not np.isfinite(boxes_xywh_px[0]).all():
        reason = "is not finite"
    elif w <= 0 or h <= 0:
        reason = "has no width or height"
    else:
        reason = f"lies outside its image of {image_hw[1]} x {image_hw[0]} pixels"
    first = f"object {indices[0]}: bbox [{x:g}, {y:g}, {w:g}, {h:g}] (x, y, width, height in pixels) {reason}"
    if on_bad_box == "error":
        more = f" So do {len(indices) - 1} more of this image." if len(indices) > 1 else ""
        raise ValueError(f"{place}: {first}.{more} {_REMEDY}")
    warnings.warn(f"{place}: left out {len(indices)} bad box(es), indices {indices}; the first, {first}.")


def _rle(obj: Mapping[str, Any], image_hw: tuple[int, int], place: str) -> dict[str, Any]:
    """The compressed run-length encoding of an object's polygons, or of its own encoding, whatever the form."""
    segmentation, (height, width) = obj.get("segmentation"), image_hw
    if isinstance(segmentation, Mapping):
        if list(segmentation.get("size", ())) != [height, width]:
            raise ValueError(
                f"{place}: the encoded mask has size {segmentation.get('size')}, its image [{height}, {width}]."
            )
        if isinstance(segmentation["counts"], (str, bytes)):
            return dict(segmentation)
        return coco_mask.frPyObjects(dict(segmentation), height, width)
    if not segmentation or isinstance(segmentation, (str, bytes)):
        raise ValueError(f"{place}: segmentation {segmentation!r}; masks need polygons or a run-length encoding.")
    for polygon in segmentation:
        if len(polygon) < 6 or len(polygon) % 2 or not np.isfinite(polygon).all():
            raise ValueError(f"{place}: polygon {polygon!r}; expected x, y pairs of at least three finite points.")
    polygons = [[float(value) for value in polygon] for polygon in segmentation]
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))


def _masks(
    rles: list[dict[str, Any]], image_hw: tuple[int, int], visible_hw: tuple[int, int], canvas_hw: tuple[int, int]
) -> Tensor:
    masks = torch.zeros((len(rles), *canvas_hw), dtype=torch.bool)
    if rles:
        decoded = torch.from_numpy(np.ascontiguousarray(coco_mask.decode(rles).transpose(2, 0, 1)))  # (T, H, W) uint8
        if visible_hw != image_hw:
            decoded = tvF.resize(decoded, list(visible_hw), interpolation=InterpolationMode.NEAREST_EXACT)
        masks[:, : visible_hw[0], : visible_hw[1]] = decoded.bool()
    return masks


def _names(mapping: Mapping[str, Any]) -> str:
    return ", ".join(map(str, mapping)) or "nothing"
