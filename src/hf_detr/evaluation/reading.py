"""What one image brings to the evaluation: its detections and its targets, read from any usual form and checked.

Everything ends as small numpy arrays in original pixels, and masks as COCO's compressed run-length encodings. The
checks sit here, at the edge: an evaluation of garbage gives a number that looks like any other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from ..data import targets as data_targets
from ..data.masks import SegmentFiles, as_entry, decode_segmentation, encode_mask
from ..data.targets import ImageTargets as Targets

# legend: N detections of one image


class Detections(NamedTuple):
    """The detections of one image, in original pixels; float32 stays float32, which loses nothing."""

    boxes_xyxy_px: NDArray  # (N, 4)
    scores: NDArray  # (N,)
    labels: NDArray  # (N,) int64


class Masks(NamedTuple):
    """The masks of one image."""

    size_hw: tuple[int, int]  # (0, 0) where there is no mask to know it from
    counts: tuple[bytes, ...]  # one a mask


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
_MASK_KEYS = ("masks", "width", "height")


def to_host(items: Sequence[Mapping], keys: Sequence[str] | None = None, with_masks: bool = False) -> list[dict]:
    """The same dicts with every tensor as a numpy array; tensors on a device come over in one copy per dtype.

    `keys` are the entries wanted, and the others (masks) are left where they are; None is all the targets need, with
    `with_masks` for their masks.
    """
    keys = (*_TARGET_KEYS, *(_MASK_KEYS if with_masks else ())) if keys is None else keys
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
    return data_targets.read_image_id(target, f"target {position} of the batch")


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
    """The ground truth of one image in original pixels, from any form that `hf_detr.data.targets` reads.

    ValueError or TypeError names `place`; boxes that are not finite or have a negative side are errors here. Masks are
    left out: see `read_target_masks`.
    """
    return replace(data_targets.read_targets(target, place).check_boxes(place), segmentations=None)


def read_masks(detections: Mapping, count: int, place: str) -> Masks:
    """The `masks` of a result dict: COCO's encodings, or (N, H, W) arrays of what is not 0. Errors name `place`."""
    if "masks" not in detections:
        raise ValueError(f"{place}: the detections lack masks; give those of post_process_masks.")
    if len(detections["masks"]) != count:
        raise ValueError(f"{place}: {len(detections['masks'])} masks for {count} detections; give one each.")
    entries = [as_entry(mask) for mask in detections["masks"]]
    if any(entry is None or entry["counts"] is None for entry in entries):
        raise ValueError(f"{place}: a detection's mask must be a run-length encoding of COCO, or an array (H, W).")
    return _masks(entries, place)


def read_target_masks(target: Mapping, size_hw: tuple[int, int], place: str) -> Masks:
    """The masks of all objects of one image, in original pixels.

    `size_hw` is for polygons of an image whose `height` and `width` are not given. Errors name `place` and the object.
    """
    if "class_labels" in target:
        if target.get("masks") is None:
            raise ValueError(f"{place}: the labels lack masks; call the processor with return_segmentation_masks=True.")
        original_hw = [int(side) for side in target["orig_size"]]
        masks = torch.from_numpy(np.asarray(target["masks"]))
        masks = masks[:0] if not len(masks) else interpolate(masks[None].float(), original_hw, mode="nearest-exact")[0]
        return _masks([encode_mask(mask) for mask in masks], place)
    columns = data_targets.columns_of(target["annotations" if "annotations" in target else "objects"], place)
    segmentations = columns.get("segmentation", [None] * len(columns["bbox"]))
    if target.get("height") and target.get("width"):
        size_hw = (int(target["height"]), int(target["width"]))
    else:
        sizes = [entry["size"] for entry in map(as_entry, segmentations) if entry and entry["size"]]
        size_hw = tuple(sizes[0]) if sizes else size_hw
    if len(segmentations) and not all(size_hw):
        raise ValueError(f"{place}: the size of the image is not known; give the target its height and width.")
    files = SegmentFiles()
    pairs = enumerate(segmentations)
    return _masks(
        [encode_mask(decode_segmentation(s, size_hw, f"{place}: object {i}", files)) for i, s in pairs], place
    )


def _masks(entries: Sequence[Mapping], place: str) -> Masks:
    sizes = {tuple(entry["size"]) for entry in entries}
    if len(sizes) > 1:
        raise ValueError(f"{place}: masks of the sizes {sorted(sizes)} (height, width); all must be the image's.")
    return Masks(sizes.pop() if sizes else (0, 0), tuple(entry["counts"].encode("ascii") for entry in entries))


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
