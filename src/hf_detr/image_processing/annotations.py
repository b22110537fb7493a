"""Annotations of one image -> the label dict that the losses read.

A label never depends on the other images of its batch: boxes are fractions of the *visible* image (resized, not
padded). Stock transformers makes them fractions of the padded canvas, so that there they move with the batch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvF

from ..boxes import xywh_to_xyxy, xyxy_to_cxcywh
from ..data.box_policy import BoxPolicy
from ..data.masks import SegmentFiles, boxes_from_masks, decode_segmentation
from ..data.targets import read_image_id, read_targets

_SEGMENT_KEYS = ("category_id", "bbox", "area", "iscrowd")


def prepare_labels(
    annotation: Mapping[str, Any],
    place: str,
    image_hw: tuple[int, int],
    visible_hw: tuple[int, int],
    *,
    boxes_as_fractions: bool,
    on_bad_box: str,
    with_masks: bool | None,
    masks_path: str | Path | None = None,
) -> dict[str, Tensor]:
    """One annotation dict -> class_labels, boxes, area, iscrowd, image_id, orig_size, size (and masks), on the CPU.

    Takes {"image_id", ...} with the objects in any form that `data.targets.read_targets` reads, or COCO's panoptic
    annotation. Crowds are left out, as the original does for training.

    Args:
        place: names the annotation in errors, such as "annotations[3]".
        image_hw: of the image as annotated; visible_hw: after resizing.
        boxes_as_fractions: cxcywh in [0, 1] of the visible image; else xyxy in pixels of the resized image.
        on_bad_box: what `data.box_policy.BoxPolicy` does with boxes that cannot be right; what "drop" and "clip"
            change is warned of with a count.
        with_masks: None is for panoptic annotations alone; masks_path: the folder of their PNGs.

    Returns:
        class_labels (T,) int64; boxes (T, 4) float32; area (T,) float32 in squared pixels of the resized image, from
        the box where none is given; iscrowd (T,) int64, all 0; image_id (1,) int64; orig_size and size (2,) int64,
        (height, width) before and after resizing (the padding is not in it: stock writes the padded size, from which
        the scale cannot be undone); masks (T, height, width) uint8, 0 or 1, of the resized image, without padding.

    Raises:
        ValueError: for bad values, naming image_id, index, value and remedy.
        TypeError: for an annotation of another form.
    """
    if isinstance(annotation, Mapping) and "segments_info" in annotation:
        annotation = _panoptic_as_objects(annotation, place, image_hw, masks_path)
        with_masks = True if with_masks is None else with_masks
    image_id = read_image_id(annotation, place)
    place = f"{place} (image_id {image_id})"
    targets = read_targets(annotation, place)
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
        labels["masks"] = _resized(torch.from_numpy(targets.masks(image_hw, place)), visible_hw)
    return labels


def _int64(values: Any) -> Tensor:
    # by NumPy: torch.tensor would follow the default device
    return torch.from_numpy(np.array(values, dtype=np.int64))


def _resized(masks: Tensor, visible_hw: tuple[int, int]) -> Tensor:
    """(T, height, width) uint8 of the resized image; exactly the given masks where it has their size."""
    if tuple(masks.shape[1:]) == tuple(visible_hw):
        return masks
    if not len(masks):
        return masks.new_zeros((0, *visible_hw))
    return tvF.resize(masks, list(visible_hw), interpolation=InterpolationMode.NEAREST_EXACT)


def _panoptic_as_objects(
    annotation: Mapping[str, Any], place: str, image_hw: tuple[int, int], masks_path: str | Path | None
) -> dict[str, Any]:
    """COCO's panoptic annotation as one of objects, every segment of the PNG being one.

    {image_id (or id), file_name, segments_info [{id, category_id, and perhaps bbox, area, iscrowd}]}, the PNG being
    `masks_path`/`file_name` -> {image_id, annotations}. A box or area that is not given is the mask's. Raises
    ValueError naming `place` for what is missing, and for a file outside `masks_path`.
    """
    file_name, image_id = annotation.get("file_name"), annotation.get("image_id", annotation.get("id"))
    place = f"{place} (image_id {image_id})"
    if masks_path is None or not file_name:
        missing = "masks_path, the folder of the PNGs" if masks_path is None else "'file_name', the PNG in masks_path"
        raise ValueError(f"{place}: a panoptic annotation needs {missing}.")
    if Path(file_name).is_absolute() or ".." in Path(file_name).parts:
        raise ValueError(f"{place}: file_name {file_name!r} leaves the folder masks_path; give a path within it.")
    path, objects, files = str(Path(masks_path) / file_name), [], SegmentFiles()
    for i, segment in enumerate(annotation["segments_info"]):
        missing_keys = {"id", "category_id"} - set(segment)
        if missing_keys:
            raise ValueError(f"{place}: segment {i} lacks {' and '.join(sorted(missing_keys))}; it has {set(segment)}.")
        entry = {"file": path, "id": int(segment["id"])}
        given = {"segmentation": entry, "iscrowd": 0}
        if segment.get("bbox") is None or segment.get("area") is None:
            mask = decode_segmentation(entry, image_hw, f"{place}: segment {i}", files)
            given |= {"bbox": boxes_from_masks(mask[None])[0].tolist(), "area": float(mask.sum())}
        given |= {name: value for name, value in segment.items() if name in _SEGMENT_KEYS and value is not None}
        objects.append(given)
    return {"image_id": image_id, "annotations": objects}
