"""An image with its objects as arrays, and what augmentations make of one: a window of it, a canvas of several.

Boxes are exact: where pixels go, boxes go, by the same whole pixels. One rule says which objects are still there. An
object that was cut, shrunk or covered leaves if less than a fifth of it is in view, unless that fills a fifth of the
view, or if a side of what is in view is below 2 pixels; else its box becomes the part of it in view, by its mask where
it has one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvF

from ..image_processing.loading import load_image
from .masks import boxes_from_masks
from .targets import columns_of, read_targets, replace_objects

MIN_VISIBLE = 0.2  # of an object, or of the view
MIN_SIDE_PX = 2.0
_BACKGROUND = (124, 116, 104)  # ImageNet's mean: 0 when normalised, as padding is

Size = tuple[int, int]
# T objects


@dataclass(frozen=True)
class LabelledImage:
    """
    Attributes:
        pixels: (C, height, width) uint8, C of 3 or, for images that are grey, 1.
        boxes_xyxy_px: (T, 4) float64.
        areas_px: (T,) float64; of masks, where there are some.
        columns: what else `objects` holds, lists of T.
        masks: (T, height, width) uint8, 0 or 1; None without.
    """

    pixels: Tensor
    boxes_xyxy_px: NDArray
    areas_px: NDArray
    columns: dict[str, list]
    masks: Tensor | None = None

    @classmethod
    def read(cls, row: Mapping[str, Any], grey: bool | None = None) -> "LabelledImage":
        """Of a row of the schema with a PIL image, with one channel if `grey` (None: if it is). Raises TypeError for
        another image, ValueError for objects that cannot be read."""
        place, image = f"image_id {row.get('image_id')}", row["image"]
        if not isinstance(image, Image.Image):
            raise TypeError(f"{place}: expected a PIL image, got {type(image).__name__}.")
        grey = image.mode == "L" if grey is None else grey
        # 16-bit images keep their tones
        pixels = load_image(image, place, do_convert_rgb=True, do_exif_transpose=False).clamp(0, 255).to(torch.uint8)
        if grey:
            pixels = pixels[:1] if image.mode == "L" else tvF.rgb_to_grayscale(pixels)
        targets = read_targets(row, place).check_boxes(place)
        boxes_xyxy_px = np.concatenate(
            (targets.boxes_xywh_px[:, :2], targets.boxes_xywh_px[:, :2] + targets.boxes_xywh_px[:, 2:]), axis=1
        )
        masks = None
        if targets.segmentations is not None:
            masks = torch.from_numpy(targets.masks(tuple(pixels.shape[1:]), place))
        return cls(pixels, boxes_xyxy_px, targets.areas_px, columns_of(row["objects"], place), masks)

    def write(self, row: Mapping[str, Any], as_tensor: bool = False) -> dict[str, Any]:
        """The row with this image and these objects; `as_tensor` leaves an image of colours a tensor."""
        image = self.pixels
        if not as_tensor or len(image) == 1:
            image = Image.fromarray(image.permute(1, 2, 0).squeeze(2).contiguous().numpy())
        boxes_xywh_px = np.concatenate(
            (self.boxes_xyxy_px[:, :2], self.boxes_xyxy_px[:, 2:] - self.boxes_xyxy_px[:, :2]), axis=1
        )
        objects = replace_objects(self.columns, range(len(self)), boxes_xywh_px, self.areas_px)
        if self.masks is not None:
            objects["segmentation"] = list(self.masks.numpy())
        height, width = self.size_hw
        return {**row, "image": image, "width": width, "height": height, "objects": objects}

    def __len__(self) -> int:
        return len(self.boxes_xyxy_px)

    @property
    def size_hw(self) -> Size:
        """(height, width) in pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]

    def select(self, kept: NDArray | Sequence[int]) -> "LabelledImage":
        """With the objects of these numbers alone."""
        kept = np.asarray(kept, dtype=np.int64)
        columns = {name: [values[k] for k in kept] for name, values in self.columns.items()}
        masks = None if self.masks is None else self.masks[torch.from_numpy(kept)]
        return LabelledImage(self.pixels, self.boxes_xyxy_px[kept], self.areas_px[kept], columns, masks)

    def flipped(self) -> "LabelledImage":
        """Left and right exchanged."""
        boxes_xyxy_px = self.boxes_xyxy_px.copy()
        boxes_xyxy_px[:, [2, 0]] = self.size_hw[1] - boxes_xyxy_px[:, [0, 2]]
        masks = None if self.masks is None else tvF.horizontal_flip(self.masks)
        return replace(self, pixels=tvF.horizontal_flip(self.pixels), boxes_xyxy_px=boxes_xyxy_px, masks=masks)

    def resized(self, size_hw: Size) -> "LabelledImage":
        """All of it at another size; every object stays."""
        return self._cut((0, 0, *self.size_hw), size_hw)

    def window(self, rectangle: tuple[int, int, int, int], size_hw: Size) -> "LabelledImage":
        """What a rectangle (top, left, height, width in pixels) shows, resized to `size_hw`."""
        window = self._cut(rectangle, size_hw)
        scale_y, scale_x = size_hw[0] / rectangle[2], size_hw[1] / rectangle[3]
        whole, boxes_xyxy_px = _areas(self.boxes_xyxy_px) * scale_y * scale_x, window.boxes_xyxy_px
        in_view = _areas(boxes_xyxy_px)
        kept = (in_view >= MIN_VISIBLE * whole) | (in_view >= MIN_VISIBLE * size_hw[0] * size_hw[1])
        if window.masks is not None:
            was_cut = in_view < whole * (1 - 1e-9)
            boxes_xyxy_px = np.where(was_cut[:, None], _meet(boxes_xyxy_px, window.masks), boxes_xyxy_px)
            kept &= window.areas_px > 0
        kept &= (_sides(boxes_xyxy_px) >= MIN_SIDE_PX).all(axis=1)
        return replace(window, boxes_xyxy_px=boxes_xyxy_px).select(np.flatnonzero(kept))

    def _cut(self, rectangle: tuple[int, int, int, int], size_hw: Size) -> "LabelledImage":
        if rectangle == (0, 0, *size_hw) and size_hw == self.size_hw:
            return self
        top, left, height, width = rectangle
        pixels = tvF.resized_crop(self.pixels, top, left, height, width, list(size_hw), antialias=True)
        scale = np.array([size_hw[1] / width, size_hw[0] / height] * 2)
        boxes_xyxy_px = (self.boxes_xyxy_px - (left, top, left, top)) * scale
        boxes_xyxy_px = boxes_xyxy_px.clip(0, (size_hw[1], size_hw[0]) * 2)
        if self.masks is None:
            # a mask's share of its box is taken to stay what it was
            areas_px = self.areas_px * _areas(boxes_xyxy_px) / np.maximum(_areas(self.boxes_xyxy_px), 1e-12)
            return LabelledImage(pixels, boxes_xyxy_px, areas_px, self.columns)
        nearest = InterpolationMode.NEAREST_EXACT  # torchvision's "nearest" is half a pixel off where sizes shrink
        masks = tvF.resized_crop(self.masks, top, left, height, width, list(size_hw), interpolation=nearest)
        return LabelledImage(pixels, boxes_xyxy_px, _counted(masks), self.columns, masks)


def on_canvas(parts: Sequence[tuple[LabelledImage, int, int]], size_hw: Size) -> LabelledImage:
    """Images, each with the top and left of where it goes, side by side on a canvas of plain background."""
    first = parts[0][0]
    channels = len(first.pixels)
    background = _BACKGROUND if channels == 3 else _BACKGROUND[1:2]
    canvas = torch.tensor(background, dtype=torch.uint8).view(-1, 1, 1).repeat(1, *size_hw)
    masks = None if first.masks is None else torch.zeros((sum(len(one) for one, *_ in parts), *size_hw)).byte()
    boxes, begin = [], 0
    for image, top, left in parts:
        height, width = image.size_hw
        canvas[:, top : top + height, left : left + width] = image.pixels
        boxes.append(image.boxes_xyxy_px + np.array([left, top, left, top]))
        if masks is not None:
            masks[begin : begin + len(image), top : top + height, left : left + width] = image.masks
        begin += len(image)
    return with_objects_of(canvas, boxes, [image for image, *_ in parts], masks)


def with_objects_of(
    pixels: Tensor, boxes_xyxy_px: Sequence[NDArray], images: Sequence[LabelledImage], masks: Tensor | None
) -> LabelledImage:
    """An image of these pixels, boxes and masks, with the areas and other columns of the objects of `images`."""
    columns = {name: [v for one in images for v in one.columns[name]] for name in images[0].columns}
    areas_px = np.concatenate([image.areas_px for image in images])
    return LabelledImage(pixels, np.concatenate(boxes_xyxy_px), areas_px, columns, masks)


def pasted(image: LabelledImage, parts: Sequence[tuple[LabelledImage, int, int]]) -> LabelledImage:
    """Images laid onto another, each over what was there before; (image, top, left).

    Without masks they are rectangles: a box that they cover in part shrinks to the smallest box around what is left of
    it in view. With masks only the objects themselves are laid on it, masks lose what is covered, and a box that loses
    some becomes that of what is left.
    """
    pixels = image.pixels.clone()
    height, width = image.size_hw
    layers, covers = [image], []
    for part, top, left in parts:
        h, w = part.size_hw
        target, masks = pixels[:, top : top + h, left : left + w], None
        if part.masks is None:
            target[:] = part.pixels
            covers.append(np.array([left, top, left + w, top + h]))
        else:
            cover = torch.zeros((height, width), dtype=torch.bool)
            cover[top : top + h, left : left + w] = part.masks.any(dim=0)
            torch.where(cover[top : top + h, left : left + w], part.pixels, target, out=target)
            covers.append(cover)
            masks = torch.zeros((len(part), height, width), dtype=torch.uint8)
            masks[:, top : top + h, left : left + w] = part.masks
        boxes_xyxy_px = part.boxes_xyxy_px + np.array([left, top, left, top])
        layers.append(replace(part, boxes_xyxy_px=boxes_xyxy_px, masks=masks))
    layers = [_covered(one, covers[number:]) for number, one in enumerate(layers)]
    masks = None if image.masks is None else torch.cat([one.masks for one in layers])
    return with_objects_of(pixels, [one.boxes_xyxy_px for one in layers], layers, masks)


def _covered(layer: LabelledImage, covers: list) -> LabelledImage:
    """The objects of a layer that is covered by rectangles (4,) xyxy or, with masks, by pixels (height, width)."""
    if not covers or not len(layer):
        return layer
    if layer.masks is not None:
        masks = layer.masks * ~torch.stack(covers).any(dim=0)
        before, after = _counted(layer.masks), _counted(masks)
        boxes = np.where((after < before)[:, None], _meet(layer.boxes_xyxy_px, masks), layer.boxes_xyxy_px)
        kept = (after >= MIN_VISIBLE * before) & (_sides(boxes) >= MIN_SIDE_PX).all(axis=1) | (after == before)
        return replace(layer, boxes_xyxy_px=boxes, areas_px=after, masks=masks).select(np.flatnonzero(kept))
    boxes, areas_px = layer.boxes_xyxy_px.copy(), layer.areas_px.copy()
    kept = []
    for number, box in enumerate(layer.boxes_xyxy_px):
        inside, share = visible_part(box, covers)
        boxes[number] = inside
        areas_px[number] *= share
        if share == 1 or (share >= MIN_VISIBLE and (_sides(inside[None]) >= MIN_SIDE_PX).all()):
            kept.append(number)
    return replace(layer, boxes_xyxy_px=boxes, areas_px=areas_px).select(kept)


def visible_part(box_xyxy: NDArray, rectangles_xyxy: Sequence[NDArray]) -> tuple[NDArray, float]:
    """The smallest box around what rectangles leave of a box, and the share of its area that they leave.

    The edges of all of them cut the box into cells, each of which is covered or is not.
    """
    low, high = box_xyxy[:2], box_xyxy[2:]
    inside = [np.concatenate((r[:2].clip(low, high), r[2:].clip(low, high))) for r in rectangles_xyxy]
    inside = [r for r in inside if (r[2:] > r[:2]).all()]
    if not inside:
        return box_xyxy, 1.0
    xs, ys = (np.unique(np.concatenate([box_xyxy[axis::2], *(r[axis::2] for r in inside)])) for axis in (0, 1))
    visible = np.ones((len(ys) - 1, len(xs) - 1), dtype=bool)
    for left, top, right, bottom in inside:
        visible &= ~np.outer((ys[:-1] >= top) & (ys[1:] <= bottom), (xs[:-1] >= left) & (xs[1:] <= right))
    if not visible.any():
        return np.zeros(4), 0.0
    columns, rows = np.flatnonzero(visible.any(axis=0)), np.flatnonzero(visible.any(axis=1))
    box = np.array([xs[columns[0]], ys[rows[0]], xs[columns[-1] + 1], ys[rows[-1] + 1]])
    cells = np.outer(np.diff(ys), np.diff(xs))
    return box, float((cells * visible).sum() / cells.sum())


def _meet(boxes_xyxy_px: NDArray, masks: Tensor) -> NDArray:
    """(T, 4): boxes, cut to those around masks (T, height, width)."""
    around = boxes_from_masks(masks)
    around[:, 2:] += around[:, :2]
    low = np.maximum(boxes_xyxy_px[:, :2], around[:, :2])
    return np.concatenate((low, np.maximum(low, np.minimum(boxes_xyxy_px[:, 2:], around[:, 2:]))), axis=1)


def _sides(boxes_xyxy_px: NDArray) -> NDArray:
    return boxes_xyxy_px[:, 2:] - boxes_xyxy_px[:, :2]


def _areas(boxes_xyxy_px: NDArray) -> NDArray:
    return _sides(boxes_xyxy_px).prod(axis=1)


def _counted(masks: Tensor) -> NDArray:
    """(T,) float64, the pixels of masks (T, height, width)."""
    return masks.flatten(1).sum(dim=1).numpy().astype(np.float64)
