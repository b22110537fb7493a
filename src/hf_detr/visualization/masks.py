"""Masks on an image: instances under their boxes, and the map of all segments beside the image with a legend.

Masks are painted one after the other, each within its own box: time grows with their number and memory does not.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np
from hotcoco import mask as coco_mask
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from hf_detr.evaluation.panoptic import Segments, read_segments
from hf_detr.evaluation.reading import Masks, read_detections, read_masks, to_host

from .canvas import Box, Color, ImageLike, as_rgb, draw_boxes, draw_sheet
from .detections import class_color
from .text import drawable, font, shortened

_LEGIBLE_PX = 640  # smaller images are enlarged to a long side of about this
_OPACITY = 0.45
_SHADES = (0.0, 0.35, -0.3, 0.6, -0.5)  # towards white or black: objects of one class beside each other
_UNLABELLED: Color = (235, 235, 235)
_EDGE: Color = (255, 255, 255)
_INK: Color = (30, 30, 30)


def draw_masks(
    image: ImageLike,
    detections: Mapping,
    id2label: Mapping[int, str] | None = None,
    threshold: float = 0.0,
    *,
    enlarge: bool = True,
) -> Image.Image:
    """A copy of the image with the masks of its detections, translucent and outlined, and their boxes and tags; RGB.

    `image`: whatever `draw_detections` takes. `detections`: a result dict of `post_process_masks` {scores, labels,
    boxes xyxy px, masks}, masks as COCO's encodings or (N, H, W); or one of `post_process_instance_segmentation` or
    `post_process_panoptic_segmentation` {segmentation (H, W), segments_info}. The most certain are on top. Raises
    ValueError or TypeError for another form, and for masks that have not the size of the image.
    """
    rgb = as_rgb(image)
    names = {int(label): str(name) for label, name in (id2label or {}).items()}
    scale = _scale(rgb, enlarge)
    pixels, boxes = _enlarged(rgb, scale), []
    for corners, label, score, mask in _instances(detections, threshold, rgb.size[::-1]):
        color = class_color(label)
        _paint(pixels, mask, scale, color, _OPACITY, edge=color)
        corners_px = tuple(float(side) * scale for side in corners)
        boxes.append(Box(corners_px, _name(names, label), "" if score is None else f"{score:.2f}", color))
    return draw_boxes(Image.fromarray(pixels), boxes, scale=1)


def draw_panoptic(
    image: ImageLike,
    result: Mapping,
    id2label: Mapping[int, str] | None = None,
    *,
    enlarge: bool = True,
) -> Image.Image:
    """The image, beside it the map of its segments, and below them the classes' colours and numbers of segments; RGB.

    `result`: {segmentation (H, W), segments_info}, of post-processing or as a target of `PanopticEvaluator`. Segments
    of one class are shades of one colour with white edges; pixels of none are light grey. Raises ValueError for another
    form, and for a map that has not the size of the image.
    """
    rgb = as_rgb(image)
    names = {int(label): str(name) for label, name in (id2label or {}).items()}
    scale = _scale(rgb, enlarge)
    segments = _segments(result, rgb.size[::-1])
    photograph = _enlarged(rgb, scale)
    pixels = np.full_like(photograph, _UNLABELLED)
    counts: dict[int, int] = {}
    for label, mask in zip(segments.labels.tolist(), _decoded(segments.size_hw, segments.counts), strict=True):
        seen = counts[label] = counts.get(label, 0) + 1
        color = _shaded(class_color(label), _SHADES[(seen - 1) % len(_SHADES)])
        _paint(pixels, mask, scale, color, 1.0, edge=_EDGE)
    cells = [Image.fromarray(one) for one in (photograph, pixels)]
    sheet = draw_sheet(cells, ["image", "segments"], columns=2)
    entries = [
        (_name(names, label) + (f" ({count})" if count > 1 else ""), class_color(label))
        for label, count in sorted(counts.items())
    ]
    return _with_legend(sheet, entries)


def _instances(
    detections: Mapping, threshold: float, size_hw: tuple[int, int]
) -> Iterator[tuple[NDArray, int, float | None, NDArray]]:
    """Corners xyxy px, label, score and mask (H, W) of each, the most certain last."""
    if "segments_info" in detections:
        segments = _segments(detections, size_hw)
        best: dict[int, float] = {}
        for info in detections["segments_info"]:
            if info.get("score") is not None:
                best[int(info["id"])] = max(best.get(int(info["id"]), 0.0), float(info["score"]))
        ids = list(dict.fromkeys(int(info["id"]) for info in detections["segments_info"]))
        order = sorted(range(len(ids)), key=lambda i: best.get(ids[i], math.inf))
        for i in order:
            score = best.get(ids[i])
            if score is None or score >= threshold:
                [mask] = _decoded(segments.size_hw, segments.counts[i : i + 1])
                yield _corners(mask), int(segments.labels[i]), score, mask
        return
    place = "drawing masks"
    [host] = to_host([detections], ("scores", "labels", "boxes", "masks"))
    found = read_detections(host, place)
    masks = read_masks(host, len(found.labels), place)
    _check_size(masks, size_hw)
    kept = np.flatnonzero(found.scores >= threshold)
    for i in kept[np.argsort(found.scores[kept], kind="stable")].tolist():
        [mask] = _decoded(masks.size_hw, masks.counts[i : i + 1])
        yield found.boxes_xyxy_px[i], int(found.labels[i]), float(found.scores[i]), mask


def _segments(result: Mapping, size_hw: tuple[int, int]) -> Segments:
    [host] = to_host([result], ("segmentation", "segments_info"))
    segments = read_segments(host, "drawing segments")
    _check_size(segments, size_hw)
    return segments


def _check_size(masks: Masks | Segments, size_hw: tuple[int, int]) -> None:
    if masks.counts and masks.size_hw != tuple(size_hw):
        raise ValueError(
            f"masks of {masks.size_hw} and an image of {tuple(size_hw)} (height, width) do not fit; give the "
            "post-processing the image's size as target_sizes."
        )


def _decoded(size_hw: tuple[int, int], counts: tuple[bytes, ...]) -> Iterator[NDArray]:
    for one in counts:
        yield coco_mask.decode({"size": list(size_hw), "counts": one})


def _corners(mask: NDArray) -> NDArray:
    """xyxy px around a mask (H, W); zeros for an empty one."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) if columns.size else np.zeros(4, int)


def _paint(pixels: NDArray, mask: NDArray, scale: int, color: Color, opacity: float, edge: Color) -> None:
    """Mixes the colour into what the mask (H, W) covers of a canvas (scale H, scale W, 3), and draws its edge."""
    left, top, right, bottom = _corners(mask)
    if right == left:
        return
    inside = mask[top:bottom, left:right].astype(bool).repeat(scale, axis=0).repeat(scale, axis=1)
    part = pixels[scale * top : scale * bottom, scale * left : scale * right]
    part[inside] = ((1 - opacity) * part[inside] + opacity * np.array(color)).round()
    around = np.pad(inside, 1)
    core = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    part[inside & ~core] = edge


def _enlarged(image: Image.Image, scale: int) -> NDArray:
    """(scale H, scale W, 3) uint8."""
    return np.array(image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC))


def _shaded(color: Color, shade: float) -> Color:
    """Towards white by a positive share, towards black by a negative one."""
    goal = 255 if shade > 0 else 0
    red, green, blue = (round(value + abs(shade) * (goal - value)) for value in color)
    return red, green, blue


def _with_legend(sheet: Image.Image, entries: list[tuple[str, Color]]) -> Image.Image:
    """The sheet with a swatch and a name for each entry below it, in as many columns as fit."""
    if not entries:
        return sheet
    letters = font(max(12, sheet.width // 70))
    line_px = sum(letters.getmetrics()) + 6
    gap = line_px // 2
    widest = max(letters.getlength(name) for name, _ in entries)
    column_px = min(math.ceil(widest) + line_px + 2 * gap, sheet.width)
    columns = max(1, sheet.width // column_px)
    rows = math.ceil(len(entries) / columns)
    whole = Image.new("RGB", (sheet.width, sheet.height + rows * line_px + gap), (255, 255, 255))
    whole.paste(sheet, (0, 0))
    draw = ImageDraw.Draw(whole)
    for number, (name, color) in enumerate(entries):
        x, y = gap + number % columns * column_px, sheet.height + number // columns * line_px
        draw.rectangle((x, y + 2, x + line_px - 6, y + line_px - 5), fill=color)
        text = shortened(name, letters, column_px - line_px - gap)
        draw.text((x + line_px, y + 1), text, fill=_INK, font=letters)
    return whole


def _name(names: Mapping[int, str], label: int) -> str:
    return drawable(names.get(label, str(label)))


def _scale(image: Image.Image, enlarge: bool) -> int:
    return max(1, math.ceil(_LEGIBLE_PX / max(image.size))) if enlarge else 1
