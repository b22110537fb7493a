"""Boxes on pictures: detections with class and score, ground truth dashed or beside them.

Everything is drawn after scaling, so that lines and letters have the same weight on a 96 px digit and a 4,000 px
photograph.
"""

import colorsys
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hf_detr.data.targets import read_targets
from hf_detr.evaluation.reading import read_detections, to_host
from hf_detr.image_processing.loading import to_eight_bits

ImageLike = Image.Image | np.ndarray | torch.Tensor

_LEGIBLE_PX = 640  # smaller pictures are enlarged to a long side of about this
_GAP_PX = 8
_LONGEST_NAME = 28
_PAPER = (255, 255, 255)
_INK = (30, 30, 30)


class _Box(NamedTuple):
    corners_px: tuple[float, float, float, float]  # xyxy on the canvas
    text: str
    color: tuple[int, int, int]
    dashed: bool


def class_color(label: int) -> tuple[int, int, int]:
    """The RGB colour of a class id, in [0, 255]; always the same, and far from that of the ids beside it."""
    # steps of the golden ratio never come near an earlier hue for long; the shades part the ones that do
    hue = (0.02 + label * 0.6180339887498949) % 1.0
    saturation, value = ((0.95, 0.95), (0.75, 1.0), (1.0, 0.72))[label % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(
    image: ImageLike,
    detections: Mapping | None,
    id2label: Mapping[int, str] | None = None,
    threshold: float = 0.0,
    targets: Mapping | None = None,
    *,
    side_by_side: bool = False,
) -> Image.Image:
    """A copy of the image with its detections of at least `threshold`, named and scored; RGB.

    `image`: a PIL image, an array (H, W), (H, W, 3) or (H, W, 4) of uint8, or a tensor (C, H, W) of uint8 or of floats
    in [0, 1]; not normalised. `detections`: a result dict {scores, labels, boxes xyxy px of this image}, or None.
    `targets`: ground truth in any form `CocoEvaluator.update` takes, drawn dashed over the detections, or in a picture
    to the left of them if `side_by_side`. Images whose long side is below 640 px are enlarged by a whole factor.
    Raises ValueError or TypeError for boxes, labels or images of another form.
    """
    picture = _rgb(image)
    scale = max(1, math.ceil(_LEGIBLE_PX / max(picture.size)))
    if not side_by_side:
        return _draw(picture, _boxes(detections, targets, id2label, threshold, scale), scale)
    if targets is None:
        raise ValueError("side_by_side needs targets to put beside the detections; give targets=...")
    truth = _draw(picture, _boxes(None, targets, id2label, threshold, scale, dashed=False), scale)
    found = _draw(picture, _boxes(detections, None, id2label, threshold, scale), scale)
    return _sheet([truth, found], ["ground truth", "detections"], columns=2)


def save_detections_grid(
    images: Sequence[ImageLike],
    detections: Sequence[Mapping | None],
    path: str | Path,
    id2label: Mapping[int, str] | None = None,
    threshold: float = 0.0,
    targets: Sequence[Mapping | None] | None = None,
    *,
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    cell_px: int = 480,
) -> Image.Image:
    """Draw several images as `draw_detections` does into one picture, and write it to `path`; returns it.

    Every image is scaled to fit a square of `cell_px`. `captions` go above the images; `columns` is by default what
    makes the whole about as wide as high. Folders on the way to `path` are made.
    """
    others = {"detections": detections, "targets": targets, "captions": captions}
    for name, values in others.items():
        if values is not None and len(values) != len(images):
            raise ValueError(f"{len(images)} images and {len(values)} {name}; give one an image.")
    if not images:
        raise ValueError("there is no image to draw; give at least one.")
    cells = []
    for i, image in enumerate(images):
        picture = _rgb(image)
        scale = cell_px / max(picture.size)
        boxes = _boxes(detections[i], None if targets is None else targets[i], id2label, threshold, scale)
        cells.append(_draw(picture, boxes, scale))
    sheet = _sheet(cells, captions, columns or math.ceil(math.sqrt(len(cells))))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return sheet


def _boxes(
    detections: Mapping | None,
    targets: Mapping | None,
    id2label: Mapping[int, str] | None,
    threshold: float,
    scale: float,
    dashed: bool = True,
) -> list[_Box]:
    """What to draw on a canvas of `scale`, the most certain last, and ground truth above all."""
    names = {int(label): str(name) for label, name in (id2label or {}).items()}
    boxes = []
    if detections is not None:
        [host] = to_host([detections], ("scores", "labels", "boxes"))
        found = read_detections(host, "drawing detections")
        kept = np.flatnonzero(found.scores >= threshold)
        for i in kept[np.argsort(found.scores[kept], kind="stable")]:
            label = int(found.labels[i])
            text = f"{_name(names, label)} {found.scores[i]:.2f}"
            boxes.append(_Box(_scaled(found.boxes_xyxy_px[i], scale), text, class_color(label), False))
    if targets is not None:
        truth = read_targets(targets, "drawing targets").check_boxes("drawing targets")
        for (x, y, width, height), label, crowd in zip(truth.boxes_xywh_px, truth.labels, truth.crowds, strict=True):
            # over detections the dashes are enough: their names are there already, and two would cover each other
            text = "" if dashed and detections is not None else _name(names, int(label)) + (" crowd" if crowd else "")
            corners = _scaled(np.array((x, y, x + width, y + height)), scale)
            boxes.append(_Box(corners, text, class_color(int(label)), dashed))
    return boxes


def _draw(picture: Image.Image, boxes: list[_Box], scale: float) -> Image.Image:
    """The picture at `scale` with the boxes on it."""
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    canvas = picture.resize(size, Image.Resampling.BICUBIC if scale >= 1 else Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(canvas)
    line_px = max(2, round(max(size) / 320))
    # a side on the border of the image, or beyond, would be drawn outside of it; a fraction would be cut, not rounded
    limits = np.array((*size, *size)) - 1
    boxes = [box._replace(corners_px=tuple(np.clip(np.rint(box.corners_px), 0, limits).tolist())) for box in boxes]
    font = _font(max(12, round(max(size) / 46)))
    for box in boxes:
        if box.dashed:
            _dashed_rectangle(draw, box.corners_px, box.color, line_px)
        else:
            draw.rectangle(box.corners_px, outline=box.color, width=line_px)
    taken: list[tuple[float, float, float, float]] = []
    for box in reversed(boxes):  # the most certain chooses its place first
        if box.text:
            taken.append(_write(draw, box, font, line_px, size, taken))
    return canvas


def _write(draw: ImageDraw.ImageDraw, box: _Box, font, line_px: int, size: tuple[int, int], taken: list) -> tuple:
    """Put the text of a box at the first free place around its corners; returns the rectangle it covers."""
    left, top, right, bottom = box.corners_px
    margin = max(2, line_px)
    width = math.ceil(font.getlength(box.text)) + 2 * margin
    height = sum(font.getmetrics()) + 2
    places = [
        (left, top - height),
        (left, bottom),
        (right - width, top - height),
        (right - width, bottom),
        (left, top),
        (left, bottom - height),
    ]
    # outside the picture it could not be read: moved in, where it may still be free
    spots = [(min(max(x, 0), max(size[0] - width, 0)), min(max(y, 0), max(size[1] - height, 0))) for x, y in places]
    areas = [(x, y, x + width, y + height) for x, y in spots]
    area = min(areas, key=lambda area: sum(_overlap(area, other) for other in taken))  # the first of equals
    draw.rectangle(area, fill=box.color)
    red, green, blue = box.color
    ink = (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 125 else (255, 255, 255)
    draw.text((area[0] + margin, area[1] + 1), box.text, fill=ink, font=font)
    return area


def _overlap(area: tuple, other: tuple) -> float:
    width = min(area[2], other[2]) - max(area[0], other[0])
    height = min(area[3], other[3]) - max(area[1], other[1])
    return max(width, 0) * max(height, 0)


def _dashed_rectangle(draw: ImageDraw.ImageDraw, corners: tuple, color: tuple, line_px: int) -> None:
    """Dashes of the colour on a white line, to be seen over a solid box of the same colour."""
    left, top, right, bottom = corners
    dash, thick = 4 * line_px, line_px - 1  # ImageDraw counts both ends of a rectangle
    draw.rectangle(corners, outline=_PAPER, width=line_px)
    for x in np.arange(left, right + 1, 2 * dash):
        for y in (top, max(top, bottom - thick)):
            draw.rectangle((x, y, min(x + dash - 1, right), min(y + thick, bottom)), fill=color)
    for y in np.arange(top, bottom + 1, 2 * dash):
        for x in (left, max(left, right - thick)):
            draw.rectangle((x, y, min(x + thick, right), min(y + dash - 1, bottom)), fill=color)


def _sheet(cells: list[Image.Image], captions: Sequence[str] | None, columns: int) -> Image.Image:
    """Pictures in rows of `columns`, each with its caption above it."""
    columns = min(columns, len(cells))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    cell_width = max(cell.width for cell in cells)
    font = _font(max(12, round(cell_width / 30)))
    head = sum(font.getmetrics()) + 4 if captions else 0
    heights = [max(cell.height for cell in row) + head for row in rows]
    size = (columns * (cell_width + _GAP_PX) + _GAP_PX, sum(heights) + (len(rows) + 1) * _GAP_PX)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    y = _GAP_PX
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for column, cell in enumerate(row):
            x = _GAP_PX + column * (cell_width + _GAP_PX)
            if captions:
                text = str(captions[number * columns + column])
                draw.text((x, y), _shortened(text, font, cell_width), fill=_INK, font=font)
            sheet.paste(cell, (x + (cell_width - cell.width) // 2, y + head))
        y += height + _GAP_PX
    return sheet


def _rgb(image: ImageLike) -> Image.Image:
    """Any usual picture -> RGB; grey values deeper than 8 bits are spread over 0 to 255."""
    if isinstance(image, torch.Tensor):
        if image.ndim != 3 or image.shape[0] not in (1, 3, 4):
            raise ValueError(f"a tensor image must be (1, 3 or 4, H, W), got {tuple(image.shape)}; permute it.")
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
        if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))):
            raise ValueError(
                f"an array image must be uint8 of shape (H, W), (H, W, 3) or (H, W, 4), got {image.dtype} of shape "
                f"{image.shape}."
            )
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise TypeError(f"an image must be a PIL image, an array or a tensor, got {type(image).__name__}.")
    if image.mode[0] in "IF":
        values = np.asarray(image, dtype=np.float64)
        spread = (values - values.min()) / max(np.ptp(values), 1e-12)
        image = Image.fromarray((spread * 255).round().astype(np.uint8))
    return to_eight_bits(image, "image").convert("RGB")


def _scaled(corners: NDArray, scale: float) -> tuple[float, float, float, float]:
    left, top, right, bottom = (float(value) * scale for value in corners)
    return left, top, right, bottom


def _name(names: Mapping[int, str], label: int) -> str:
    name = names.get(label, str(label))
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def _shortened(text: str, font, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


@lru_cache(maxsize=16)
def _font(height_px: int) -> ImageFont.FreeTypeFont:
    # matplotlib brings DejaVu Sans: more alphabets than Pillow's own font, and the same on every machine
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), height_px)
