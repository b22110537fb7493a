"""Annotations of one image -> the label dict that the losses read.

A label never depends on the other images of its batch: boxes are fractions of the *visible* image (resized, not
padded). Stock transformers makes them fractions of the padded canvas, so that there they move with the batch.
"""

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from hotcoco import mask as coco_mask
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvF

from ..boxes import xywh_to_xyxy, xyxy_to_cxcywh
from ..data.box_policy import BoxPolicy
from ..data.targets import read_image_id, read_targets


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

    Takes {"image_id", ...} with the objects in any form that `data.targets.read_targets` reads. Crowds are left out,
    as the original does for training.

    Args:
        place: names the annotation in errors, such as "annotations[3]".
        image_hw: of the image as annotated; visible_hw: after resizing; canvas_hw: after padding.
        boxes_as_fractions: cxcywh in [0, 1] of the visible image; else xyxy in pixels of the resized image.
        on_bad_box: what `data.box_policy.BoxPolicy` does with boxes that cannot be right; what "drop" and "clip"
            change is warned of with a count.

    Returns:
        class_labels (T,) int64; boxes (T, 4) float32; area (T,) float32 in squared pixels of the resized image, from
        the box where none is given; iscrowd (T,) int64, all 0; image_id (1,) int64; orig_size and size (2,) int64,
        (height, width) before and after resizing (the padding is not in it: stock writes the padded size, from which
        the scale cannot be undone); masks (T, canvas height, canvas width) bool, zero on the padding.

    Raises:
        ValueError: for bad values, naming image_id, index, value and remedy.
        TypeError: for an annotation of another form.
    """
    image_id = read_image_id(annotation, place)
    place = f"{place} (image_id {image_id})"
    targets = read_targets(annotation, place, with_segmentations=with_masks)
    policy = BoxPolicy(on_bad_box)
    height, width = image_hw
    targets = targets.select(~targets.crowds).under(policy, width, height, place)
    policy.warn()

    scale_hw = np.array(visible_hw) / np.array(image_hw)
    unit_wh = np.array([width, height]) if boxes_as_fractions else 1 / scale_hw[::-1]
    boxes = xywh_to_xyxy(torch.from_numpy(targets.boxes_xywh_px))  # float64 until the last step
    boxes = boxes / torch.from_numpy(np.tile(unit_wh, 2))
    if boxes_as_fractions:
        boxes = xyxy_to_cxcywh(boxes)

    labels = {
        "image_id": _int64([image_id]),
        "class_labels": _int64(targets.labels),
        "boxes": boxes.to(torch.float32),
        "area": torch.from_numpy(targets.areas_px * scale_hw.prod()).to(torch.float32),
        "iscrowd": _int64(targets.crowds),
        "orig_size": _int64(image_hw),
        "size": _int64(visible_hw),
    }
    if with_masks:
        objects = zip(targets.segmentations, targets.index.tolist(), strict=True)
        masks = [_mask(segmentation, image_hw, f"{place}: object {i}") for segmentation, i in objects]
        labels["masks"] = _resized(masks, visible_hw, canvas_hw)
    return labels


def _int64(values: Any) -> Tensor:
    # by NumPy: torch.tensor would follow the default device
    return torch.from_numpy(np.array(values, dtype=np.int64))


def _mask(segmentation: Any, image_hw: tuple[int, int], place: str) -> NDArray:
    """(H, W) uint8, 0 or 1, from an object's polygons or its run-length encoding, compressed or not."""
    height, width = image_hw
    if isinstance(segmentation, Mapping):
        if list(segmentation.get("size", ())) != [height, width]:
            raise ValueError(
                f"{place}: the encoded mask has size {segmentation.get('size')}, its image [{height}, {width}]."
            )
        try:
            runs = np.array(_runs(segmentation.get("counts")), dtype=np.int64)
        except (TypeError, ValueError, OverflowError):
            runs = np.array([-1])
        if (runs < 0).any() or runs.sum() != height * width:
            counts = repr(segmentation.get("counts"))
            raise ValueError(
                f"{place}: the run-length encoding {counts if len(counts) < 80 else counts[:80] + '...'} cannot be "
                f"decoded; write the mask anew, with counts that add up to {height} x {width}."
            )
        return np.repeat((np.arange(len(runs)) % 2).astype(np.uint8), runs).reshape(width, height).T
    try:
        polygons = [np.array(polygon, dtype=np.float64) for polygon in segmentation or ()]
    except (TypeError, ValueError):
        polygons = []
    if isinstance(segmentation, (str, bytes)) or not polygons:
        raise ValueError(f"{place}: segmentation {segmentation!r}; masks need polygons or a run-length encoding.")
    for polygon, given in zip(polygons, segmentation, strict=True):
        if polygon.ndim != 1 or polygon.size < 6 or polygon.size % 2 or not np.isfinite(polygon).all():
            hint = " (a polygon is a list in the list of polygons)" if polygon.ndim == 0 else ""
            raise ValueError(f"{place}: polygon {given!r}; expected x, y pairs of at least three finite points{hint}.")
    rles = coco_mask.frPyObjects([polygon.tolist() for polygon in polygons], height, width)
    return coco_mask.decode(coco_mask.merge(rles))


def _runs(counts: Any) -> list[int]:
    """The lengths of the runs, zeros first, column by column, from a list or from COCO's compressed string.

    The libraries that decode these do not all notice that runs are missing.
    """
    if not isinstance(counts, (str, bytes)):
        return [operator.index(count) for count in counts]
    runs, value, shift = [], 0, 0
    for byte in counts.encode("ascii") if isinstance(counts, str) else counts:
        if not 48 <= byte < 48 + 64:
            raise ValueError(f"byte {byte}")
        # 5 bits, the lowest first; bit 5 says that more follow, bit 4 of the last is the sign
        value, shift = value | (byte - 48 & 31) << shift, shift + 5
        if not byte - 48 & 32:
            value -= (byte - 48 & 16) and 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))  # the difference from the last run of its kind
            value = shift = 0
    if shift:
        raise ValueError("the last number is cut off")
    return runs


def _resized(masks: list[NDArray], visible_hw: tuple[int, int], canvas_hw: tuple[int, int]) -> Tensor:
    """(T, canvas height, canvas width) bool, zero on the padding."""
    canvas = torch.from_numpy(np.zeros((len(masks), *canvas_hw), dtype=bool))
    if masks:
        visible = torch.from_numpy(np.stack(masks))
        if tuple(visible.shape[1:]) != tuple(visible_hw):
            visible = tvF.resize(visible, list(visible_hw), interpolation=InterpolationMode.NEAREST_EXACT)
        canvas[:, : visible_hw[0], : visible_hw[1]] = visible.bool()
    return canvas
