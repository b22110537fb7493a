"""The paper's augmentation, on image, boxes and masks together."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvF

from ..boxes import xywh_to_xyxy, xyxy_to_xywh
from ..image_processing.loading import load_image
from .random_numbers import between, one_of, random_share
from .targets import columns_of, read_targets, replace_objects

# Carion et al. 2020, 4 and appendix A.4: pixels of the shortest edge, at a base of 800
_SCALES = tuple(range(480, 801, 32))
_SCALES_BEFORE_CROP = (400, 500, 600)
_CROP = (384, 600)
_BASE = 800


class _Plan(NamedTuple):
    """What is done to one image; sizes are (height, width) in pixels."""

    flip: bool
    hw_before_crop: tuple[int, int] | None
    crop: tuple[int, int, int, int] | None  # top, left, height, width
    final_hw: tuple[int, int]

    def apply(self, value: Any) -> Any:
        """To a tv_tensor, image or boxes; or to masks, a plain tensor (N, height, width) of bytes."""
        # torchvision's nearest for its own masks is that of torch, half a pixel off where sizes shrink
        options = {"antialias": True}
        if not isinstance(value, tv_tensors.TVTensor):
            options = {"interpolation": InterpolationMode.NEAREST_EXACT}
        if self.flip:
            value = tvF.horizontal_flip(value)
        if self.crop is not None:
            value = tvF.crop(tvF.resize(value, list(self.hw_before_crop), **options), *self.crop)
        return tvF.resize(value, list(self.final_hw), **options)


class PaperAugmentation:
    """Flip, multi-scale resize, random crop; a callable on a row of the schema, returning a new row.

    Half of the images are mirrored. Then half are resized so that the shortest edge is one of 480, 512 ... 800 (the
    longest at most 1333); the other half are resized to 400, 500 or 600, a rectangle with sides of 384 to 600 is cut
    out, and that is resized as the first half. `shortest_edge` and `longest_edge` scale all these numbers from 800
    and 1333.

    Boxes are cut to what remains in view, objects out of view leave (they are not in the image), areas shrink with
    the visible part of their box. Masks, where `objects` have a `segmentation`, go the same way and come out as arrays
    (height, width) of 0 and 1. Random numbers are torch's: seeded by
    `torch.manual_seed`, different in every data loader worker. The image comes out at its final size: the image
    processor must not resize it again, which `DetectionTransform` sees from `resizes`. `final_hw` gives that size
    beforehand, so that images that will be alike can be put into one batch.
    """

    resizes = True

    def __init__(self, shortest_edge: int = 800, longest_edge: int = 1333, flip_probability: float = 0.5):
        if not 0 < shortest_edge <= longest_edge:
            raise ValueError(
                f"expected 0 < shortest_edge <= longest_edge in pixels, got {shortest_edge} and {longest_edge}."
            )

        def scaled(sizes: Sequence[int]) -> list[int]:
            return [max(1, round(size * shortest_edge / _BASE)) for size in sizes]

        self.shortest_edge, self.longest_edge, self.flip_probability = shortest_edge, longest_edge, flip_probability
        self._scales, self._scales_before_crop, self._crop_sides = map(scaled, (_SCALES, _SCALES_BEFORE_CROP, _CROP))

    def final_hw(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """(height, width) that a call would give an image of `size_hw`, with the random numbers of that call."""
        return self._plan(size_hw).final_hw

    def __call__(self, row: Mapping[str, Any], as_tensor: bool = False) -> dict[str, Any]:
        """Row of the schema (`image` PIL, `objects` a dict of lists) -> row; TypeError for an image without PIL.

        With `as_tensor` an image of colours comes out as (3, height, width) uint8: no way back to PIL, and forth again.
        """
        place = f"image_id {row.get('image_id')}"
        if not isinstance(row["image"], Image.Image):
            raise TypeError(f"{place}: expected a PIL image, got {type(row['image']).__name__}.")
        with torch.device("cpu"):  # tv_tensors are made on the default device
            return self._augmented(row, place, as_tensor)

    def _augmented(self, row: Mapping[str, Any], place: str, as_tensor: bool) -> dict[str, Any]:
        grey = row["image"].mode == "L"
        # as the image processor reads it: 16-bit images keep their tones
        pixels = load_image(row["image"], place, do_convert_rgb=not grey, do_exif_transpose=False)
        size_hw = pixels.shape[1], pixels.shape[2]
        plan = self._plan(size_hw)
        # torch resizes bytes in a quarter of PIL's time, in the order of memory that they come in from PIL
        pixels = pixels if pixels.dtype == torch.uint8 else pixels.clamp(0, 255).to(torch.uint8)
        image = plan.apply(tv_tensors.Image(pixels)).as_subclass(Tensor)
        if grey or not as_tensor:
            image = Image.fromarray(image.permute(1, 2, 0).squeeze(2).contiguous().numpy())

        targets = read_targets(row, place)
        boxes = xywh_to_xyxy(torch.from_numpy(targets.boxes_xywh_px).float())
        boxes = plan.apply(tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size_hw)).as_subclass(Tensor)
        boxes_xywh_px = xyxy_to_xywh(boxes).numpy()
        in_view = np.flatnonzero((boxes_xywh_px[:, 2:] > 0).all(axis=1))
        # a mask's share of its box is taken to stay what it was
        areas_px = targets.areas_px * boxes_xywh_px[:, 2:].prod(axis=1)
        areas_px /= np.maximum(targets.boxes_xywh_px[:, 2:].prod(axis=1), 1e-12)
        columns = columns_of(row["objects"], place)
        objects = replace_objects(columns, in_view, boxes_xywh_px[in_view], areas_px[in_view])
        height, width = plan.final_hw
        result = {**row, "image": image, "width": width, "height": height, "objects": objects}
        if targets.segmentations is not None:
            masks = torch.from_numpy(targets.select(in_view).masks(size_hw, place))
            objects["segmentation"] = list(plan.apply(masks).numpy()) if len(masks) else []
        return result

    def _plan(self, size_hw: tuple[int, int]) -> _Plan:
        flip, crops = (rate > random_share() for rate in (self.flip_probability, 0.5))
        before = crop = None
        if crops:
            size_hw = before = _with_shortest_edge(size_hw, one_of(self._scales_before_crop))
            low, high = self._crop_sides
            height, width = (between(min(low, side), min(high, side)) for side in size_hw)
            crop = (between(0, size_hw[0] - height), between(0, size_hw[1] - width), height, width)
            size_hw = height, width
        return _Plan(flip, before, crop, _with_shortest_edge(size_hw, one_of(self._scales), self.longest_edge))

    def __repr__(self) -> str:
        return (
            f"PaperAugmentation(shortest_edge={self.shortest_edge}, longest_edge={self.longest_edge}, "
            f"flip_probability={self.flip_probability})"
        )


def paper_augmentation(
    shortest_edge: int = 800, longest_edge: int | None = None, flip_probability: float = 0.5
) -> PaperAugmentation:
    """`PaperAugmentation` for this base size in pixels; the longest edge keeps the paper's ratio, 1333 / 800."""
    return PaperAugmentation(shortest_edge, longest_edge or round(shortest_edge * 1333 / _BASE), flip_probability)


def _with_shortest_edge(size_hw: tuple[int, int], shortest: int, longest: int | None = None) -> tuple[int, int]:
    """(height, width) with the shortest edge as given, the longest no longer, and the ratio kept; 1 at least."""
    now, wanted = min(size_hw), shortest
    if longest is not None and max(size_hw) * shortest > longest * now:
        now, wanted = max(size_hw), longest
    height, width = (max(1, side * wanted // now) for side in size_hw)  # floats would make 511 of 512
    return height, width
