"""Boxes with tags on an image, and images on a sheet: how a drawing is made, whatever it shows.

Everything is drawn after scaling, so that lines and letters have the same weight on a 96 px digit and a 4,000 px
photograph.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hf_detr.image_processing.loading import to_eight_bits

from .text import drawable, font, shortened

ImageLike = Image.Image | np.ndarray | torch.Tensor
Color = tuple[int, int, int]  # RGB in [0, 255]

_GAP_PX = 8
_PAPER = (255, 255, 255)
_INK = (30, 30, 30)
_SMALL_PX = 320  # below this long side lines are of 1 px and letters smaller


class Box(NamedTuple):
    """One box to draw: xyxy px of the canvas, its tag's name (shortened where there is no room) and score."""

    corners_px: tuple[float, float, float, float]
    name: str
    score: str
    color: Color
    dashed: bool = False


def draw_boxes(image: Image.Image, boxes: Sequence[Box], scale: float) -> Image.Image:
    """The RGB image at `scale` with the boxes on it, the last on top, whose tag chooses its place first; dashed boxes
    lie under solid ones and are wider, so that both are seen where they coincide. Many tags are smaller ones."""
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = image.resize(size, Image.Resampling.BICUBIC if scale >= 1 else Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(canvas)
    small = max(size) < _SMALL_PX
    line_px = max(1 if small else 2, round(max(size) / 320))
    # a side on the border of the image, or beyond, would be drawn outside of it; a fraction would be cut, not rounded
    limits = np.array((*size, *size)) - 1
    boxes = [box._replace(corners_px=tuple(np.clip(np.rint(box.corners_px), 0, limits).tolist())) for box in boxes]
    boxes.sort(key=lambda box: not box.dashed)
    wide_px = line_px + max(1, line_px // 2) if boxes and not boxes[-1].dashed else line_px
    for box in boxes:
        if box.dashed:
            _dashed_rectangle(draw, box.corners_px, box.color, wide_px)
        else:
            draw.rectangle(box.corners_px, outline=box.color, width=line_px)
    tagged = [box for box in boxes if box.name or box.score]
    # tags of some 15 letters, which fill 10 squares of their height, may cover a sixth of the canvas
    crowded_px = math.sqrt(size[0] * size[1] / 60 / max(len(tagged), 1))
    letters = font(max(9 if small else 12, round(min(max(size) / 46, crowded_px))))
    covered = np.zeros(size[::-1], dtype=bool)  # by tags: asking it costs the same however many there are
    tags = [_placed_tag(box, letters, line_px, covered) for box in reversed(tagged)]
    for box, (text, x, y, width, height) in zip(tagged, reversed(tags), strict=True):
        area = (x, y, x + width - 1, y + height - 1)  # ImageDraw counts both ends
        draw.rectangle(area, fill=_PAPER if box.dashed else box.color, outline=box.color)
        ink = box.color if box.dashed else _ink_on(box.color)
        draw.text((x + max(2, line_px), y + 1), text, fill=ink, font=letters)
    return canvas


def draw_sheet(
    cells: Sequence[Image.Image],
    captions: Sequence[str] | None,
    columns: int,
    legend: Sequence[Box] = (),
) -> Image.Image:
    """Images in rows of `columns`, each with its caption above it; on top the strokes of `legend` with their names."""
    columns = min(columns, len(cells))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    cell_width = max(cell.width for cell in cells)
    letters = font(max(12, round(cell_width / 30)))
    line_px = sum(letters.getmetrics()) + 4
    head = line_px if captions else 0
    heights = [max(cell.height for cell in row) + head for row in rows]
    width = columns * (cell_width + _GAP_PX) + _GAP_PX
    top = _GAP_PX + line_px * len(legend)
    sheet = Image.new("RGB", (width, sum(heights) + len(rows) * _GAP_PX + top), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, entry in enumerate(legend):
        _legend_line(draw, entry, letters, _GAP_PX + number * line_px, line_px, width)
    y = top
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for column, cell in enumerate(row):
            x = _GAP_PX + column * (cell_width + _GAP_PX)
            if captions:
                text = drawable(str(captions[number * columns + column]))
                draw.text((x, y), shortened(text, letters, cell_width), fill=_INK, font=letters)
            sheet.paste(cell, (x + (cell_width - cell.width) // 2, y + head))
        y += height + _GAP_PX
    return sheet


def as_rgb(image: ImageLike) -> Image.Image:
    """Any usual image -> RGB; grey values deeper than 8 bits are scaled as they are for the model.

    Raises ValueError or TypeError for what is no image, or has no pixels.
    """
    if isinstance(image, torch.Tensor):
        if image.ndim != 3 or image.shape[0] not in (1, 3, 4):
            raise ValueError(f"a tensor image must be (1, 3 or 4, H, W), got {tuple(image.shape)}; permute it.")
        _check_size(image.shape[2], image.shape[1])
        array = image.detach().cpu()
        if array.is_floating_point():
            if not (array.min() >= 0 and array.max() <= 1):
                raise ValueError(
                    f"a float image must lie in [0, 1], got {array.min():.3g} to {array.max():.3g}; draw on the image "
                    "itself, not on normalised pixel values."
                )
            array = (array.float() * 255).round().to(torch.uint8)
        array = array.numpy().transpose(1, 2, 0)
        image = array[..., 0] if array.shape[2] == 1 else array
    if isinstance(image, np.ndarray):
        usual = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))
        if image.dtype != np.uint8 or not usual:
            raise ValueError(
                f"an array image must be uint8 of shape (H, W), (H, W, 3) or (H, W, 4), got {image.dtype} of shape "
                f"{image.shape}."
            )
        _check_size(image.shape[1], image.shape[0])
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise TypeError(f"an image must be a PIL image, an array or a tensor, got {type(image).__name__}.")
    _check_size(*image.size)
    return to_eight_bits(image, "image").convert("RGB")


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"an image of {width} x {height} pixels cannot be drawn on; leave it out.")


def _placed_tag(
    box: Box, letters: ImageFont.FreeTypeFont, line_px: int, covered: NDArray
) -> tuple[str, int, int, int, int]:
    """The text of a box's tag, and its left, top, width and height in pixels: at one of the box's corners, where it
    covers the least of other tags.

    `covered` (H, W): the pixels under tags, to which its own are added.
    """
    left, top, right, bottom = box.corners_px
    canvas_height, canvas_width = covered.shape
    margin = max(2, line_px)
    room = canvas_width - 2 * margin - letters.getlength(f" {box.score}")
    text = f"{shortened(box.name, letters, room)} {box.score}".strip()
    width = math.ceil(letters.getlength(text)) + 2 * margin
    height = sum(letters.getmetrics()) + 2
    above = [(left, top - height), (right - width, top - height)]
    inside = [(left, top), (right - width, top), (left, bottom - height)]
    below = [(left, bottom), (right - width, bottom)]
    hides_box = right - left < 1.5 * width or bottom - top < 1.5 * height
    places = [*above, *below, *inside] if hides_box else [*above, *inside, *below]
    # outside the image it could not be read: moved in, where it still touches its box
    most_x, most_y = max(canvas_width - width, 0), max(canvas_height - height, 0)
    spots = [(round(min(max(x, 0), most_x)), round(min(max(y, 0), most_y))) for x, y in places]
    x, y = min(spots, key=lambda spot: covered[spot[1] : spot[1] + height, spot[0] : spot[0] + width].sum())
    covered[y : y + height, x : x + width] = True
    return text, x, y, width, height


def _ink_on(color: Color) -> Color:
    """Black or white, whichever is read on the colour."""
    red, green, blue = color
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 125 else (255, 255, 255)


def _legend_line(draw: ImageDraw.ImageDraw, entry: Box, letters, top: int, height: int, width: int) -> None:
    """A sample of the stroke, and what it stands for."""
    sample = (_GAP_PX, top + 2, _GAP_PX + 2 * height, top + height - 5)
    if entry.dashed:
        _dashed_rectangle(draw, sample, entry.color, 3)
    else:
        draw.rectangle(sample, outline=entry.color, width=2)
    x = sample[2] + _GAP_PX
    draw.text((x, top), shortened(entry.name, letters, width - x), fill=_INK, font=letters)


def _dashed_rectangle(draw: ImageDraw.ImageDraw, corners: tuple, color: Color, line_px: int) -> None:
    """Dashes of the colour on a white line, to be seen on any ground."""
    left, top, right, bottom = corners
    dash, thick = 4 * line_px, line_px - 1  # ImageDraw counts both ends of a rectangle
    draw.rectangle(corners, outline=_PAPER, width=line_px)
    for x in np.arange(left, right + 1, 2 * dash):
        for y in (top, max(top, bottom - thick)):
            draw.rectangle((x, y, min(x + dash - 1, right), min(y + thick, bottom)), fill=color)
    for y in np.arange(top, bottom + 1, 2 * dash):
        for x in (left, max(left, right - thick)):
            draw.rectangle((x, y, min(x + thick, right), min(y + dash - 1, bottom)), fill=color)
