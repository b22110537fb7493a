"""The paper's augmentation, on picture, boxes and masks together."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as tvF

from ..image_processing.loading import to_eight_bits

# Carion et al. 2020, 4 and appendix A.4: pixels of the shortest edge, at a base of 800
_SCALES = tuple(range(480, 801, 32))
_SCALES_BEFORE_CROP = (400, 500, 600)
_CROP = (384, 600)
_BASE = 800


class _Plan(NamedTuple):
    """What is done to one picture; sizes are (height, width) in pixels."""

    flip: bool
    hw_before_crop: tuple[int, int] | None
    crop: tuple[int, int, int, int] | None  # top, left, height, width
    final_hw: tuple[int, int]

    def apply(self, value: Any) -> Any:
        """To a tv_tensor: image, boxes or masks."""
        if self.flip:
            value = tvF.horizontal_flip(value)
        if self.crop is not None:
            value = tvF.crop(tvF.resize(value, list(self.hw_before_crop), antialias=True), *self.crop)
        return tvF.resize(value, list(self.final_hw), antialias=True)


class PaperAugmentation:
    """Flip, multi-scale resize, random crop; a callable on a row of the schema, returning a new row.

    Half of the pictures are mirrored. Then half are resized so that the shortest edge is one of 480, 512 ... 800 (the
    longest at most 1333); the other half are resized to 400, 500 or 600, a rectangle with sides of 384 to 600 is cut
    out, and that is resized as the first half. `shortest_edge` and `longest_edge` scale all these numbers from 800
    and 1333.

    Boxes are cut to what remains in view, objects out of view leave (they are not in the picture), areas shrink with
    the visible part of their box. A row may have `masks`, (N, height, width). Random numbers are torch's: seeded by
    `torch.manual_seed`, different in every data loader worker. The picture comes out at its final size: the image
    processor must not resize it again, which `DetectionTransform` sees from `resizes`. `final_hw` tells that size
    beforehand, so that pictures that will be alike can be put into one batch.
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
        """(height, width) that a call would give a picture of `size_hw`, with the random numbers of that call."""
        return self._plan(size_hw).final_hw

    def __call__(self, row: Mapping[str, Any], as_tensor: bool = False) -> dict[str, Any]:
        """Row of the schema (`image` PIL, `objects` a dict of lists) -> row; TypeError for an image without PIL.

        With `as_tensor` the image of an RGB picture is (3, height, width) uint8: no way back to PIL, and forth again.
        """
        image = row["image"]
        if not isinstance(image, Image.Image):
            raise TypeError(f"image_id {row.get('image_id')}: expected a PIL image, got {type(image).__name__}.")
        image = to_eight_bits(image, f"image_id {row.get('image_id')}")
        if image.mode not in ("L", "RGB"):
            image = image.convert("RGB")  # palettes and bilevel pictures cannot be interpolated
        mode, size_hw = image.mode, (image.height, image.width)
        plan = self._plan(size_hw)
        # torch resizes bytes in a quarter of PIL's time, in the order of memory that they come in from PIL
        pixels = torch.from_numpy(np.array(image)).reshape(*size_hw, -1).permute(2, 0, 1)
        image = plan.apply(tv_tensors.Image(pixels)).as_subclass(Tensor)
        if not (as_tensor and mode == "RGB"):
            image = Image.fromarray(image.permute(1, 2, 0).squeeze(2).contiguous().numpy())

        boxes_xyxy_px = torch.tensor(row["objects"]["bbox"], dtype=torch.float32).reshape(-1, 4).clone()
        boxes_xyxy_px[:, 2:] += boxes_xyxy_px[:, :2]
        boxes = tv_tensors.BoundingBoxes(boxes_xyxy_px, format="XYXY", canvas_size=size_hw)
        boxes_xyxy_px = plan.apply(boxes).as_subclass(Tensor)
        sides = boxes_xyxy_px[:, 2:] - boxes_xyxy_px[:, :2]
        in_view = torch.nonzero((sides > 0).all(1)).flatten().tolist()
        objects = {name: [values[i] for i in in_view] for name, values in row["objects"].items()}
        boxes_xywh_px = torch.cat((boxes_xyxy_px[:, :2], sides), dim=1)
        objects["bbox"] = boxes_xywh_px[in_view].tolist()
        if "area" in objects:
            # a mask's share of its box is taken to stay what it was
            shown = sides.prod(1).tolist()
            objects["area"] = [
                area * shown[i] / max(row["objects"]["bbox"][i][2] * row["objects"]["bbox"][i][3], 1e-12)
                for i, area in zip(in_view, objects["area"], strict=True)
            ]
        height, width = plan.final_hw
        result = {**row, "image": image, "width": width, "height": height, "objects": objects}
        if row.get("masks") is not None:
            masks = tv_tensors.Mask(torch.as_tensor(row["masks"]).reshape(-1, *size_hw))
            result["masks"] = plan.apply(masks).as_subclass(Tensor)[in_view]
        return result

    def _plan(self, size_hw: tuple[int, int]) -> _Plan:
        flip, crops = (torch.rand(2) < torch.tensor([self.flip_probability, 0.5])).tolist()
        before = crop = None
        if crops:
            size_hw = before = _with_shortest_edge(size_hw, _one_of(self._scales_before_crop))
            low, high = self._crop_sides
            height, width = (_between(min(low, side), min(high, side)) for side in size_hw)
            crop = (_between(0, size_hw[0] - height), _between(0, size_hw[1] - width), height, width)
            size_hw = height, width
        return _Plan(flip, before, crop, _with_shortest_edge(size_hw, _one_of(self._scales), self.longest_edge))

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


def _between(low: int, high: int) -> int:
    """A random number, both ends among them."""
    return int(torch.randint(low, high + 1, ()))


def _one_of(values: Sequence[int]) -> int:
    return values[_between(0, len(values) - 1)]
