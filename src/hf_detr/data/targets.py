"""The ground truth of one image, read from any of its usual forms and checked: the one reader of annotations.

Everything ends as small NumPy arrays in pixels of the image as annotated. What is read here has the right form: four
numbers a box, class ids from 0, areas and crowd flags. Whether a box can be right is `BoxPolicy`'s to judge
(`ImageTargets.under`), or `check_boxes`'s where the size of the image is not known.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .box_policy import BoxPolicy
from .masks import SegmentFiles, decode_segmentation

# T objects of one image


@dataclass(frozen=True)
class ImageTargets:
    """The objects of one image.

    Attributes:
        boxes_xywh_px: (T, 4) float64.
        labels: (T,) int64, class ids from 0.
        areas_px: (T,) float64, the mask's where the source gives it, else the box's.
        crowds: (T,) bool.
        index: (T,) int64, the place of each object in what was read: errors name it.
        segmentations: as they were given, one an object, not decoded; None where no object has one.
    """

    boxes_xywh_px: NDArray
    labels: NDArray
    areas_px: NDArray
    crowds: NDArray
    index: NDArray
    segmentations: tuple | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, kept: NDArray | Sequence[int]) -> "ImageTargets":
        """The objects of these numbers (or of this mask) alone."""
        kept = np.arange(len(self))[np.asarray(kept, dtype=None if len(kept) else np.int64)]
        segmentations = None if self.segmentations is None else tuple(self.segmentations[k] for k in kept)
        arrays = (self.boxes_xywh_px, self.labels, self.areas_px, self.crowds, self.index)
        return ImageTargets(*(array[kept] for array in arrays), segmentations)

    def under(self, policy: BoxPolicy, width: int, height: int, place: str) -> "ImageTargets":
        """The objects that `policy` keeps of a `width` x `height` image, their boxes as it leaves them.

        The area of a mask is the source's; one that was the box's follows the box that was clipped. Raises ValueError
        naming `place` and the object under "error".
        """
        boxes = [
            policy(tuple(box), width, height, f"{place}: object {i}")
            for i, box in zip(self.index.tolist(), self.boxes_xywh_px.tolist(), strict=True)
        ]
        kept = self.select([k for k, box in enumerate(boxes) if box is not None])
        boxes_xywh_px = np.array([box for box in boxes if box is not None], dtype=np.float64).reshape(-1, 4)
        before, after = kept.boxes_xywh_px[:, 2:].prod(axis=1), boxes_xywh_px[:, 2:].prod(axis=1)
        of_the_box = np.isclose(kept.areas_px, before, rtol=1e-6, atol=0)  # columns are float32
        areas_px = np.where(of_the_box & (before != after), after, kept.areas_px)
        return ImageTargets(boxes_xywh_px, kept.labels, areas_px, kept.crowds, kept.index, kept.segmentations)

    def check_boxes(self, place: str) -> "ImageTargets":
        """Itself, where all boxes are finite and none has a negative side; else ValueError naming `place`."""
        for what, bad in (
            ("boxes hold a NaN or an infinity", ~np.isfinite(self.boxes_xywh_px).all(axis=1)),
            ("boxes have a negative side", (self.boxes_xywh_px[:, 2:] < 0).any(axis=1)),
        ):
            if bad.any():
                k = int(np.flatnonzero(bad)[0])
                raise ValueError(
                    f"{place}: target {what}, first object {self.index[k]} (left, top, width, height in pixels: "
                    f"{self.boxes_xywh_px[k].tolist()}); correct the annotation."
                )
        return self

    def masks(self, size_hw: tuple[int, int], place: str) -> NDArray:
        """(T, height, width) uint8, 0 or 1, decoded now. MaskError, a ValueError, names `place` and object."""
        files = SegmentFiles()  # a PNG of several segments is read once
        masks = np.zeros((len(self), *size_hw), dtype=np.uint8)
        for mask, i, given in zip(masks, self.index, self.segmentations or [None] * len(self), strict=True):
            mask[:] = decode_segmentation(given, size_hw, f"{place}: object {i}", files)
        return masks

    def as_coco(self) -> list[dict[str, Any]]:
        """One dict an object, with COCO's names and plain numbers."""
        columns = (self.boxes_xywh_px, self.labels, self.areas_px, self.crowds.astype(int))
        names = ("bbox", "category_id", "area", "iscrowd")
        objects = [dict(zip(names, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)]
        if self.segmentations is not None:
            for one, segmentation in zip(objects, self.segmentations, strict=True):
                one["segmentation"] = segmentation
        return objects


def read_targets(target: Mapping[str, Any], place: str) -> ImageTargets:
    """The ground truth of one image, whose errors name `place`, such as "image 7".

    Three forms: COCO's {annotations [{bbox xywh px, category_id, and perhaps area, iscrowd, segmentation}]}; a row
    {objects {bbox xywh px, category, and perhaps area, iscrowd, segmentation}}, either as a list of dicts or as a dict
    of lists; the processor's label dict {class_labels, boxes cxcywh in [0, 1], orig_size (h, w), and perhaps size,
    area, iscrowd}. Numbers may be Python's, NumPy's or tensors of any device.

    Raises:
        TypeError: another form, or class ids that are no integers.
        ValueError: missing keys, unequal lengths, and numbers that cannot be right.
    """
    if not isinstance(target, Mapping):
        raise TypeError(f"{place}: expected a dict with annotations or objects, got {type(target).__name__}.")
    if "class_labels" in target:
        return _read_labels(target, place)
    key = next((key for key in ("annotations", "objects") if key in target), None)
    if key is None and "segments_info" in target:
        raise ValueError(f"{place}: panoptic annotations (segments_info) are read by the processor alone; give boxes.")
    if key is None:
        raise ValueError(
            f"{place}: a target needs 'class_labels' and 'boxes' (the processor's), 'objects' (a row) or "
            f"'annotations' (COCO); got {_names(target)}."
        )
    columns = columns_of(target[key], place)
    category = "category_id" if "category_id" in columns else "category"
    missing = [name for name in ("bbox", category) if name not in columns]
    if missing:
        raise ValueError(f"{place}: the objects lack {' and '.join(missing)}; got {_names(columns)}.")
    boxes_xywh_px = _boxes(columns["bbox"], place)
    segmentations = columns.get("segmentation")
    return ImageTargets(
        boxes_xywh_px,
        _labels(columns[category], place, category),
        _areas(columns.get("area"), boxes_xywh_px[:, 2:].prod(axis=1), place),
        _crowds(columns.get("iscrowd"), len(boxes_xywh_px), place),
        np.arange(len(boxes_xywh_px)),
        None if segmentations is None else tuple(segmentations),
    )


def columns_of(objects: Any, place: str) -> dict[str, list]:
    """Objects as a dict of equally long lists, whichever of the two layouts they come in.

    In a list of dicts every object needs a box and a class; what else only some have is None for the others. Raises
    TypeError for what is neither layout, ValueError for missing keys and unequal lengths.
    """
    if isinstance(objects, Mapping):
        _check_lengths(objects, place)
        return {name: list(values) for name, values in objects.items()}
    if isinstance(objects, (str, bytes)) or not isinstance(objects, Iterable):
        raise TypeError(
            f"{place}: the objects are {type(objects).__name__}; expected a list of dicts or a dict of lists."
        )
    objects = list(objects)
    for i, one in enumerate(objects):
        if not isinstance(one, Mapping):
            raise TypeError(f"{place}: object {i} is {type(one).__name__}; expected a dict with bbox and category_id.")
        if "bbox" not in one or not ("category_id" in one or "category" in one):
            raise ValueError(f"{place}: object {i} needs 'bbox' and 'category_id'; got {_names(one)}.")
    names = dict.fromkeys(name for one in objects for name in one) or ("bbox", "category")
    return {name: [one.get(name) for one in objects] for name in names}


def replace_objects(
    columns: Mapping[str, Sequence], kept: Sequence[int], boxes_xywh_px: NDArray, areas_px: NDArray
) -> dict[str, list]:
    """Columns of the objects `kept` alone, their boxes and, where there is such a column, areas replaced."""
    result = {name: [values[k] for k in kept] for name, values in columns.items()}
    result["bbox"] = np.asarray(boxes_xywh_px).tolist()
    return result | ({"area": np.asarray(areas_px).tolist()} if "area" in columns else {})


def read_image_id(target: Mapping[str, Any], place: str) -> int:
    """The `image_id` of a target: one integer, of any kind that has one. TypeError or ValueError names `place`."""
    if not isinstance(target, Mapping):
        raise TypeError(f"{place}: expected a dict with image_id, got {type(target).__name__}.")
    if "image_id" not in target:
        raise ValueError(f"{place}: no 'image_id', only {_names(target)}; give each image an integer of its own.")
    remedy = "number the images, and keep their names in a column of their own"
    return _integer(target["image_id"], place, "'image_id'", remedy)


def _read_labels(target: Mapping[str, Any], place: str) -> ImageTargets:
    missing = [key for key in ("boxes", "orig_size") if key not in target]
    if missing:
        raise ValueError(f"{place}: the labels lack {' and '.join(missing)}; pass them as the processor made them.")
    names = [name for name in ("class_labels", "boxes", "area", "iscrowd") if target.get(name) is not None]
    _check_lengths({name: target[name] for name in names}, place)
    boxes = _boxes(target["boxes"], place)  # cxcywh, of the visible image
    orig_h, orig_w = _size_hw(target["orig_size"], place, "orig_size")
    sides = boxes[:, 2:] * (orig_w, orig_h)
    boxes_xywh_px = np.concatenate((boxes[:, :2] * (orig_w, orig_h) - sides / 2, sides), axis=1)

    areas = sides.prod(axis=1)
    if target.get("area") is not None:
        if "size" not in target:
            raise ValueError(
                f"{place}: 'area' is counted in pixels of the resized image, and 'size' (h, w) is not there to scale "
                "it back; keep 'size' beside it, or leave out 'area' and the boxes' own is taken."
            )
        height, width = _size_hw(target["size"], place, "size")
        areas = _areas(target["area"], areas, place) * (orig_h * orig_w / (height * width))
    # an area of exactly 32**2 is small and medium; float32 on the way there and back must not decide that
    whole = np.round(areas)
    areas = np.where(np.abs(areas - whole) <= 1e-6 * whole, whole, areas)
    labels = _labels(target["class_labels"], place, "class_labels")
    return ImageTargets(
        boxes_xywh_px, labels, areas, _crowds(target.get("iscrowd"), len(boxes), place), np.arange(len(boxes))
    )


def _check_lengths(columns: Mapping[str, Any], place: str) -> None:
    single = [name for name, values in columns.items() if not hasattr(values, "__len__") or isinstance(values, str)]
    if single:
        raise TypeError(f"{place}: {single[0]} is {columns[single[0]]!r}; expected a list with one entry an object.")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{place}: the lists of objects differ in length, {lengths}; each needs one entry a box.")


def _boxes(values: Any, place: str) -> NDArray:
    """(T, 4) float64, finite or not."""
    array = _array(values)
    if array is None or array.dtype.kind not in "fiu" or array.shape[1:] != (4,):
        array = np.zeros((len(values), 4))
        for i, value in enumerate(values):
            box = _array(value)
            if box is None or box.dtype.kind not in "fiu" or box.shape != (4,):
                raise ValueError(
                    f"{place}: object {i}: bbox {value!r}; expected four numbers [x, y, width, height] in pixels."
                )
            array[i] = box
    return array.astype(np.float64)


def _labels(values: Any, place: str, name: str) -> NDArray:
    """(T,) int64 from 0."""
    labels = _array(values)
    if labels is None or labels.dtype.kind not in "iu" or labels.ndim != 1:
        remedy = "map names to class ids (integers) with label2id"
        labels = [_integer(value, f"{place}: object {i}", name, remedy) for i, value in enumerate(values)]
    labels = np.asarray(labels, dtype=np.int64)
    if (labels < 0).any():
        i = int(np.flatnonzero(labels < 0)[0])
        raise ValueError(f"{place}: object {i}: {name} {labels[i]} is negative; classes are numbered from 0.")
    return labels


def _areas(values: Any, of_boxes: NDArray, place: str) -> NDArray:
    """(T,) float64; the box's own where none is given."""
    if values is None:
        return of_boxes
    areas = _array(values)
    if areas is None or areas.dtype.kind not in "fiu" or areas.ndim != 1:
        areas = [_number(own if value is None else value) for value, own in zip(values, of_boxes, strict=True)]
        areas = np.array(areas, dtype=np.float64)
    # the area of a bad box is no fault of its own
    bad = ~(np.isfinite(areas) & (areas >= 0)) & ~np.isclose(areas, of_boxes, rtol=1e-6, atol=0, equal_nan=True)
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"{place}: object {i}: area {values[i]!r}; expected squared pixels, or no area to have the box's own."
        )
    return areas.astype(np.float64)


def _crowds(values: Any, count: int, place: str) -> NDArray:
    """(T,) bool; None is no crowd."""
    crowds = np.zeros(count, dtype=bool)
    for i, value in enumerate(() if values is None else values):
        if value not in (None, 0, 1):
            raise ValueError(f"{place}: object {i}: iscrowd {value!r}; expected 0 or 1.")
        crowds[i] = bool(value)
    return crowds


def _size_hw(value: Any, place: str, name: str) -> tuple[float, float]:
    size = _array(value)
    if size is None or size.dtype.kind not in "fiu" or size.shape != (2,) or not (size > 0).all():
        raise ValueError(f"{place}: {name!r} must be a positive (height, width), got {value!r}.")
    return float(size[0]), float(size[1])


def _integer(value: Any, place: str, name: str, remedy: str) -> int:
    """A whole number in any form (NumPy's, a tensor or list of one, 3.0) as int."""
    array = _array(value)
    one = array.item() if array is not None and array.size == 1 and array.dtype.kind in "iufO" else None
    try:
        number = int(one) if isinstance(one, float) and one.is_integer() else operator.index(one)
    except TypeError:
        raise TypeError(f"{place}: {name} must be one integer, got {value!r}; {remedy}.") from None
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{place}: {name} {value!r} does not fit in 64 bits; {remedy}.")
    return number


def _number(value: Any) -> float:
    """One number in any form as float; NaN for anything else."""
    array = _array(value)
    return float(array.item()) if array is not None and array.dtype.kind in "fiu" and array.size == 1 else np.nan


def _array(value: Any) -> NDArray | None:
    """The value as an array of its own, which later changes of the value do not reach; None where it is ragged."""
    if isinstance(value, Tensor):
        value = value.detach().float() if value.is_floating_point() and value.itemsize < 4 else value.detach()
        value = value.cpu().numpy()  # NumPy has no bfloat16
    try:
        return np.array(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None


def _names(mapping: Mapping[str, Any]) -> str:
    return ", ".join(map(str, mapping)) or "nothing"
