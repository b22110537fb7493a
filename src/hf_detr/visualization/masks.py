"""Masks on an image: instances under their boxes, and the map of all segments beside the image with a legend.

Masks are painted one after the other, each within its own box: time grows with their number and memory does not.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from hotcoco import mask as coco_mask
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from hf_detr.evaluation.panoptic import Segments, read_truth
from hf_detr.evaluation.reading import (
    Masks,
    read_detections,
    read_masks,
    read_target_masks,
    read_targets,
    to_host,
)

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
    return _with_instances(rgb, _scale(rgb, enlarge), _instances(detections, threshold, rgb.size[::-1]), names)


def draw_panoptic(
    image: ImageLike,
    result: Mapping,
    id2label: Mapping[int, str] | None = None,
    *,
    enlarge: bool = True,
) -> Image.Image:
    """The image, beside it the map of its segments, and below them the classes' colours and numbers of segments; RGB.

    `result`: {segmentation (H, W), segments_info}, of post-processing, or a target of `PanopticEvaluator`, such as a
    row of the data set. Segments of one class are shades of one colour with white edges; pixels of none are light grey.
    Raises ValueError for another form, and for a map that has not the size of the image.
    """
    rgb = as_rgb(image)
    names = {int(label): str(name) for label, name in (id2label or {}).items()}
    scale = _scale(rgb, enlarge)
    segments = _segments(result, rgb.size[::-1])
    photograph = _scaled(rgb, scale)
    cells = [Image.fromarray(photograph), _map_of(segments, photograph)]
    entries = [
        (_name(names, label) + (f" ({count})" if count > 1 else ""), class_color(label))
        for label, count in sorted(Counter(segments.labels.tolist()).items())
    ]
    return _with_legend(draw_sheet(cells, ["image", "segments"], columns=2), entries)


def save_masks_grid(
    images: Sequence[ImageLike],
    results: Sequence[Mapping],
    targets: Sequence[Mapping],
    path: str | Path,
    id2label: Mapping[int, str] | None = None,
    threshold: float = 0.0,
    *,
    cell_px: int = 320,
) -> Image.Image:
    """As `draw_masks_grid`, and writes the sheet to `path`; folders on the way there are made."""
    sheet = draw_masks_grid(images, results, targets, id2label, threshold, cell_px=cell_px)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return sheet


def draw_masks_pair(
    image: ImageLike,
    result: Mapping,
    target: Mapping,
    id2label: Mapping[int, str] | None = None,
    threshold: float = 0.0,
    *,
    cell_px: int = 320,
    place: str = "drawing masks",
) -> tuple[Image.Image, Image.Image]:
    """The annotation and what was found, as `draw_masks` draws it; the image is scaled to fit a square of `cell_px`.
    Errors begin with `place`."""
    rgb = as_rgb(image)
    names = {int(label): str(name) for label, name in (id2label or {}).items()}
    size_hw, scale = rgb.size[::-1], cell_px / max(rgb.size)
    annotated, found = _annotated(target, size_hw, place), _instances(result, threshold, size_hw)
    return _with_instances(rgb, scale, annotated, names), _with_instances(rgb, scale, found, names)


def draw_masks_grid(
    images: Sequence[ImageLike],
    results: Sequence[Mapping],
    targets: Sequence[Mapping],
    id2label: Mapping[int, str] | None = None,
    threshold: float = 0.0,
    *,
    cell_px: int = 320,
) -> Image.Image:
    """What was found in several images beside their annotations on one sheet.

    `results`: as for `draw_masks`, or of `post_process_panoptic_segmentation`, which are drawn as maps beside their
    image. `targets`: rows of the data set, or other targets of `CocoEvaluator` or `PanopticEvaluator`. Every image is
    scaled to fit a square of `cell_px`.
    """
    if not images or not len(images) == len(results) == len(targets):
        raise ValueError(f"{len(images)} images, {len(results)} results and {len(targets)} targets; give one an image.")
    names = {int(label): str(name) for label, name in (id2label or {}).items()}
    as_maps = any("segments_info" in result for result in results)
    captions = ["image", "annotation", "found"] if as_maps else ["annotation", "found"]
    cells, seen = [], set()
    for i, (image, result, target) in enumerate(zip(images, results, targets, strict=True)):
        place = f"image {i}"
        if as_maps:
            rgb = as_rgb(image)
            size_hw, photograph = rgb.size[::-1], _scaled(rgb, cell_px / max(rgb.size))
            both = read_truth(target, size_hw, place), _segments(result, size_hw)
            cells += [Image.fromarray(photograph), *(_map_of(segments, photograph) for segments in both)]
            seen |= {label for segments in both for label in segments.labels.tolist()}
        else:
            cells += draw_masks_pair(image, result, target, names, threshold, cell_px=cell_px, place=place)
    columns = len(captions) * (2 if len(images) > 3 else 1)
    sheet = draw_sheet(cells, captions * len(images), columns)
    return _with_legend(sheet, [(_name(names, label), class_color(label)) for label in sorted(seen)])


def _with_instances(rgb: Image.Image, scale: float, instances: Iterable, names: Mapping[int, str]) -> Image.Image:
    pixels, boxes = _scaled(rgb, scale), []
    for corners, label, score, mask in instances:
        color = class_color(label)
        _paint(pixels, mask, color, _OPACITY, edge=color)
        corners_px = tuple(float(side) * scale for side in corners)
        boxes.append(Box(corners_px, _name(names, label), "" if score is None else f"{score:.2f}", color))
    return draw_boxes(Image.fromarray(pixels), boxes, scale=1)


def _map_of(segments: Segments, photograph: NDArray) -> Image.Image:
    """The segments in the colours of their classes, of the photograph's size."""
    pixels = np.full_like(photograph, _UNLABELLED)
    counts: Counter[int] = Counter()
    for label, mask in zip(segments.labels.tolist(), _decoded(segments.size_hw, segments.counts), strict=True):
        color = _shaded(class_color(label), _SHADES[counts[label] % len(_SHADES)])
        counts[label] += 1
        _paint(pixels, mask, color, 1.0, edge=_EDGE)
    return Image.fromarray(pixels)


def _annotated(target: Mapping, size_hw: tuple[int, int], place: str) -> Iterator[tuple[NDArray, int, None, NDArray]]:
    """Of a target what `_instances` gives of detections."""
    [host] = to_host([target], with_masks=True)
    truth, masks = read_targets(host, place), read_target_masks(host, size_hw, place)
    for (left, top, width, height), label, mask in zip(
        truth.boxes_xywh_px, truth.labels.tolist(), _decoded(masks.size_hw, masks.counts), strict=True
    ):
        yield np.array([left, top, left + width, top + height]), label, None, mask


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
    [host] = to_host([result], ("segmentation", "segments_info", "objects", "annotations", "width", "height"))
    segments = read_truth(host, size_hw, "drawing segments")
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


def _paint(pixels: NDArray, mask: NDArray, color: Color, opacity: float, edge: Color) -> None:
    """Mixes the colour into what the mask covers of a canvas (H, W, 3), to whose size it is brought; draws its edge."""
    if mask.shape != pixels.shape[:2]:
        mask = np.array(Image.fromarray(mask).resize(pixels.shape[1::-1], Image.Resampling.NEAREST))
    left, top, right, bottom = _corners(mask)
    if right == left:
        return
    inside = mask[top:bottom, left:right].astype(bool)
    part = pixels[top:bottom, left:right]
    part[inside] = ((1 - opacity) * part[inside] + opacity * np.array(color)).round()
    around = np.pad(inside, 1)
    core = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    part[inside & ~core] = edge


def _scaled(image: Image.Image, scale: float) -> NDArray:
    """(scale H, scale W, 3) uint8."""
    size_wh = tuple(max(1, round(side * scale)) for side in image.size)
    return np.array(image.resize(size_wh, Image.Resampling.BICUBIC))


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
