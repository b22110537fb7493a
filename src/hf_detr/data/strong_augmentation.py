"""Augmentations for few images, on image, boxes and masks together: several images in one, other sizes, other colours.

Each is a callable on a row of the schema that gives a row, as `DetectionTransform` takes them, alone or in a list.
Those that use other images (`mixes`) are called with a function that gives another row of the data set each time, which
`transform_dataset` sees to. Random numbers follow from one number of torch's global generator a call. How boxes, areas
and masks are kept right: see `labelled_image`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import ceil, sqrt
from typing import Any, ClassVar

import numpy as np
import torch
from torchvision.transforms import v2

from ..image_processing.settings import resized_hw
from .labelled_image import LabelledImage, Size, on_canvas, pasted, with_objects_of
from .random_numbers import between, between_floats, one_of, random_share, seeded

Others = Callable[[], LabelledImage]


class ImageAugmentation(ABC):
    """What they have in common; a kind of its own defines `apply`.

    Attributes:
        probability: of being done at all.
        mixes: whether a call needs the function that gives other rows.
        resizes: whether images come out at their final size, so that the processor must not resize.
        closing: what takes its place in the last part of a training (`DetrTrainingArguments.augment_until`); None:
            nothing.
    """

    mixes: ClassVar[bool] = False
    resizes: ClassVar[bool] = False
    closing: Any = None

    def __init__(self, probability: float = 1.0):
        if not 0 <= probability <= 1:
            raise ValueError(f"{type(self).__name__}: probability={probability!r} is not between 0 and 1.")
        self.probability = probability

    def __call__(
        self, row: Mapping[str, Any], others: Callable[[], Mapping[str, Any]] | None = None, as_tensor: bool = False
    ) -> dict[str, Any]:
        """Row of the schema with a PIL image -> row; with `as_tensor` its image may be (3, height, width) uint8.

        Raises ValueError without `others` where they are needed.
        """
        if self.mixes and others is None:
            raise ValueError(
                f"{type(self).__name__} mixes an image with others of its data set; give the rows to transform_dataset("
                "dataset, transform), or call it with a function that gives another row."
            )
        # tv_tensors are made on the default device
        with torch.device("cpu"), seeded(_number()):
            image = LabelledImage.read(row)
            grey = len(image.pixels) == 1
            if random_share() < self.probability:
                image = self.apply(image, lambda: LabelledImage.read(others(), grey), self._size_hw(image.size_hw))
            return image.write(row, as_tensor)

    def final_hw(self, size_hw: Size) -> Size:
        """(height, width) that an image of `size_hw` will have; takes the random number that a call takes."""
        _number()
        return self._size_hw(size_hw)

    @abstractmethod
    def apply(self, image: LabelledImage, others: Others, size_hw: Size) -> LabelledImage:
        """The augmented image, of `size_hw`; `others` gives another each time."""

    def _size_hw(self, size_hw: Size) -> Size:
        return size_hw

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({settings})"


class Mosaic(ImageAugmentation):
    """Two to four images side by side: halves, a half and two quarters, or four, at random lines.

    Each tile is filled with a random part of its image, which is shown between the least size that fills the tile and
    the size it has alone. Bochkovskiy et al. 2020; in its dense one-to-one form Huang et al. 2024 (DEIM).
    """

    mixes = True

    def apply(self, image: LabelledImage, others: Others, size_hw: Size) -> LabelledImage:
        """The image of the row is in one of the tiles."""
        tiles = _tiles(size_hw)
        own = between(0, len(tiles) - 1)
        parts = []
        for number, (top, left, height, width) in enumerate(tiles):
            source = image if number == own else others()
            parts.append((_filling(source, (height, width), size_hw), top, left))
        return on_canvas(parts, size_hw)


class MixUp(ImageAugmentation):
    """Two images blended, about half of each, with the objects of both. Zhang et al. 2019 (bag of freebies)."""

    mixes = True

    def __init__(self, probability: float = 1.0, least: float = 0.4):
        super().__init__(probability)
        if not 0 <= least <= 0.5:
            raise ValueError(f"MixUp: least={least!r}, the share of the fainter image, is not between 0 and 0.5.")
        self.least = least

    def apply(self, image: LabelledImage, others: Others, size_hw: Size) -> LabelledImage:
        """Each image has a share of `least` at least."""
        images = (image, _filling(others(), size_hw, size_hw))
        share = between_floats(self.least, 1 - self.least)
        pixels = torch.lerp(images[1].pixels.float(), images[0].pixels.float(), share).round().to(torch.uint8)
        masks = None if image.masks is None else torch.cat([one.masks for one in images])
        return with_objects_of(pixels, [one.boxes_xyxy_px for one in images], images, masks)


class CopyPaste(ImageAugmentation):
    """Objects of another image, up to `most`, laid on the image at random places and sizes. Ghiasi et al. 2021.

    With masks, the objects alone; without, the rectangles of their boxes with all that they show, other objects too.
    Crowds and, in panoptic data, stuff are not chosen. Objects that are covered: see `labelled_image.pasted`.
    """

    mixes = True

    def __init__(self, probability: float = 1.0, most: int = 4, scale: tuple[float, float] = (0.5, 1.5)):
        super().__init__(probability)
        if most < 1 or not 0 < scale[0] <= scale[1]:
            raise ValueError(f"CopyPaste: most={most} must be at least 1, and scale={scale} above 0, in order.")
        self.most, self.scale = most, tuple(scale)

    def apply(self, image: LabelledImage, others: Others, size_hw: Size) -> LabelledImage:
        """`scale` is relative to the size that an object would have in its own image."""
        source = others()
        crowds, things = (source.columns.get(name, [v] * len(source)) for name, v in (("iscrowd", 0), ("is_thing", 1)))
        chosen = [k for k in range(len(source)) if not crowds[k] and things[k]]
        chosen = [chosen[k] for k in torch.randperm(len(chosen)).tolist()[: between(1, self.most)]]
        parts = []
        for number in chosen:
            left, top = np.floor(source.boxes_xyxy_px[number, :2]).clip(0).astype(int).tolist()
            right, bottom = np.ceil(source.boxes_xyxy_px[number, 2:]).clip(0, source.size_hw[::-1]).astype(int).tolist()
            if right <= left or bottom <= top:
                continue
            scale = _own_scale(source.size_hw, size_hw) * between_floats(*self.scale)
            scale = min(scale, size_hw[0] / (bottom - top), size_hw[1] / (right - left))
            part_hw = max(1, int((bottom - top) * scale)), max(1, int((right - left) * scale))
            part = source if source.masks is None else source.select([number])
            part = part.window((top, left, bottom - top, right - left), part_hw)
            if len(part):
                parts.append((part, *(between(0, side - own) for side, own in zip(size_hw, part_hw, strict=True))))
        return pasted(image, parts)


class LargeScaleJitter(ImageAugmentation):
    """The image larger or smaller by a factor in `scale`: a random part of it, or all of it somewhere on a plain
    background. Ghiasi et al. 2021 (their factors: 0.1 to 2)."""

    def __init__(self, probability: float = 1.0, scale: tuple[float, float] = (0.1, 2.0)):
        super().__init__(probability)
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"LargeScaleJitter: scale={scale} must be above 0, in order.")
        self.scale = tuple(scale)

    def apply(self, image: LabelledImage, others: Others, size_hw: Size) -> LabelledImage:
        """At a factor of 1 the image fills `size_hw`."""
        scale = between_floats(*self.scale)
        if scale >= 1:
            return image.window(_part(image.size_hw, [max(1, round(side / scale)) for side in image.size_hw]), size_hw)
        height, width = (max(1, round(side * scale)) for side in size_hw)
        small = image.window((0, 0, *image.size_hw), (height, width))
        return on_canvas([(small, between(0, size_hw[0] - height), between(0, size_hw[1] - width))], size_hw)


class ColourJitter(ImageAugmentation):
    """Brightness, contrast, saturation and hue, by torchvision's `ColorJitter`, whose arguments these are."""

    def __init__(
        self,
        probability: float = 1.0,
        brightness: float | tuple[float, float] = 0.2,
        contrast: float | tuple[float, float] = 0.3,
        saturation: float | tuple[float, float] = 0.3,
        hue: float | tuple[float, float] = 0.0,
    ):
        super().__init__(probability)
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue
        self._jitter = v2.ColorJitter(brightness, contrast, saturation, hue)

    def apply(self, image: LabelledImage, others: Others, size_hw: Size) -> LabelledImage:
        """Boxes stay."""
        return replace(image, pixels=self._jitter(image.pixels))


class FlipAndResize(ImageAugmentation):
    """Resized as a processor of this `size` resizes, and every second one mirrored: nothing that changes sizes."""

    resizes = True

    def __init__(self, size: Mapping[str, int], flip_probability: float = 0.5):
        super().__init__()
        self.size, self.flip_probability = dict(size), flip_probability

    def apply(self, image: LabelledImage, others: Others, size_hw: Size) -> LabelledImage:
        """Every object stays."""
        image = image.resized(size_hw)
        return image.flipped() if random_share() < self.flip_probability else image

    def _size_hw(self, size_hw: Size) -> Size:
        return resized_hw(size_hw, self.size)


class StrongAugmentation(FlipAndResize):
    """All of them together, for some hundreds of images or fewer; `DetectionTransform(..., augment="strong")`.

    Every image comes out at the size that a processor of `size` gives it. It is a mosaic, or else jittered in scale;
    then some get objects pasted on, some are blended with another image, half are mirrored, and colours change. In the
    last part of a training it is `FlipAndResize` alone, since no image to be predicted on looks like these.
    """

    mixes = True

    def __init__(
        self,
        size: Mapping[str, int],
        flip_probability: float = 0.5,
        mosaic: Mosaic | None = None,
        jitter: LargeScaleJitter | None = None,
        then: tuple[ImageAugmentation, ...] | None = None,
    ):
        super().__init__(size, flip_probability)
        self.mosaic = Mosaic(0.5) if mosaic is None else mosaic
        self.jitter = LargeScaleJitter(scale=(0.5, 2.0)) if jitter is None else jitter
        self.then = (CopyPaste(0.3), MixUp(0.2), ColourJitter(0.8)) if then is None else tuple(then)

    @property
    def closing(self) -> FlipAndResize:
        """See `ImageAugmentation`."""
        return FlipAndResize(self.size, self.flip_probability)

    def apply(self, image: LabelledImage, others: Others, size_hw: Size) -> LabelledImage:
        """In this order, so that each object is resized once."""
        if random_share() < self.mosaic.probability:
            image = self.mosaic.apply(image, others, size_hw)
        elif random_share() < self.jitter.probability:
            image = self.jitter.apply(image, others, size_hw)
        for augment in self.then:
            if random_share() < augment.probability:
                image = augment.apply(image.resized(size_hw), others, size_hw)
        return super().apply(image, others, size_hw)


def _number() -> int:
    """One random number of torch's global generator, from which all others of a call follow."""
    return between(0, 2**62)


def _own_scale(image_hw: Size, size_hw: Size) -> float:
    """The factor at which an image has as many pixels as `size_hw`."""
    return sqrt(size_hw[0] * size_hw[1] / (image_hw[0] * image_hw[1]))


def _part(image_hw: Size, part_hw: Any) -> tuple[int, int, int, int]:
    """A random rectangle (top, left, height, width) of these sides."""
    return (*(between(0, side - part) for side, part in zip(image_hw, part_hw, strict=True)), *part_hw)


def _filling(image: LabelledImage, tile_hw: Size, size_hw: Size) -> LabelledImage:
    """A random part of an image that fills a tile of an image of `size_hw`."""
    covering = max(tile / side for tile, side in zip(tile_hw, image.size_hw, strict=True))
    scale = between_floats(covering, max(covering, _own_scale(image.size_hw, size_hw)))
    part_hw = [min(side, max(1, ceil(tile / scale))) for tile, side in zip(tile_hw, image.size_hw, strict=True)]
    return image.window(_part(image.size_hw, part_hw), tile_hw)


def _tiles(size_hw: Size) -> list[tuple[int, int, int, int]]:
    """Two to four rectangles (top, left, height, width) that are all of an image; one where it is too small."""
    height, width = size_hw
    if min(size_hw) < 2:
        return [(0, 0, height, width)]
    # a third of a side at least
    y, x = (between(max(1, side // 3), side - max(1, side // 3)) for side in size_hw)
    top, bottom = (0, 0, y, width), (y, 0, height - y, width)
    left, right = (0, 0, height, x), (0, x, height, width - x)
    corners = [(t, l, h, w) for t, h in ((0, y), (y, height - y)) for l, w in ((0, x), (x, width - x))]  # noqa: E741
    top_left, top_right, bottom_left, bottom_right = corners
    return one_of(
        (
            one_of(([top, bottom], [left, right])),
            one_of(
                (
                    [top, bottom_left, bottom_right],
                    [bottom, top_left, top_right],
                    [left, top_right, bottom_right],
                    [right, top_left, bottom_left],
                )
            ),
            corners,
        )
    )
