"""Detections with class and score on an image, ground truth dashed under them or beside them."""

import colorsys
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from hf_detr.boxes import iou
from hf_detr.data.targets import read_targets
from hf_detr.evaluation.reading import read_detections, to_host

from .canvas import Box, Color, ImageLike, as_rgb, draw_boxes, draw_sheet
from .text import drawable

_LONGEST_NAME = 28
# In a comparison colours tell detection from annotation, for every kind of colour vision: Okabe and Ito's orange and
# blue, which differ in lightness as well.
_DETECTION, _ANNOTATION = (230, 159, 0), (0, 114, 178)
_FOUND_IOU = 0.5  # with a detection of its class, an annotation needs no name of its own


def class_color(label: int) -> Color:
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
    enlarge: bool = True,
    least_px: int = 640,
) -> Image.Image:
    """A copy of the image with its detections of at least `threshold`, named and scored; RGB.

    `image`: a PIL image, an array (H, W), (H, W, 3) or (H, W, 4) of uint8, or a tensor (C, H, W) of uint8 or of floats
    in [0, 1]; not normalised. `detections`: a result dict {scores, labels, boxes xyxy px of this image}, or None.
    `targets`: ground truth in any form `CocoEvaluator.update` takes. With detections, it is drawn dashed and blue under
    them, which are orange then, and named where no detection of its class has an IoU of 0.5 with it; or in an image to
    the left of them if `side_by_side`. Otherwise colours are those of the classes. Images whose long side is below
    `least_px` are enlarged by a whole factor, unless `enlarge` is false. Characters of names that cannot be written are
    escaped. The time grows with the number of boxes.

    Raises ValueError or TypeError for boxes, labels or images of another form, and for an image without pixels.
    """
    rgb = as_rgb(image)
    scale = max(1, math.ceil(least_px / max(rgb.size))) if enlarge else 1
    if not side_by_side:
        return draw_boxes(rgb, _boxes(detections, targets, id2label, threshold, scale), scale)
    if targets is None:
        raise ValueError("side_by_side needs targets to put beside the detections; give targets=...")
    truth = [box._replace(dashed=False) for box in _boxes(None, targets, id2label, threshold, scale)]
    found = _boxes(detections, None, id2label, threshold, scale)
    cells = [draw_boxes(rgb, boxes, scale) for boxes in (truth, found)]
    return draw_sheet(cells, ["ground truth", "detections"], columns=2)


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
    """Draw several images as `draw_detections` does onto one sheet, and write it to `path`; returns it.

    Every image is scaled to fit a square of `cell_px`. `captions` go above the images, such as their names; `columns`
    is by default what makes the whole about as wide as high. With `targets`, a legend on top tells them from
    detections. Folders on the way to `path` are made.
    """
    others = {"detections": detections, "targets": targets, "captions": captions}
    for name, values in others.items():
        if values is not None and len(values) != len(images):
            raise ValueError(f"{len(images)} images and {len(values)} {name}; give one an image.")
    if not images:
        raise ValueError("there is no image to draw; give at least one.")
    cells = []
    for i, image in enumerate(images):
        rgb = as_rgb(image)
        scale = cell_px / max(rgb.size)
        found = detections[i] if targets is None or detections[i] is not None else _NOTHING
        boxes = _boxes(found, None if targets is None else targets[i], id2label, threshold, scale)
        cells.append(draw_boxes(rgb, boxes, scale))
    legend = [] if targets is None else _LEGEND
    sheet = draw_sheet(cells, captions, columns or math.ceil(math.sqrt(len(cells))), legend)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return sheet


_NOTHING: dict[str, list] = {"scores": [], "labels": [], "boxes": []}
_LEGEND = [
    Box((0, 0, 0, 0), "detection: class and score", "", _DETECTION),
    Box((0, 0, 0, 0), "annotation: named where no detection of its class is at it", "", _ANNOTATION, dashed=True),
]


def _boxes(
    detections: Mapping | None,
    targets: Mapping | None,
    id2label: Mapping[int, str] | None,
    threshold: float,
    scale: float,
) -> list[Box]:
    """What to draw on a canvas of `scale`, the most certain last."""
    names = {int(label): str(name) for label, name in (id2label or {}).items()}
    compared = detections is not None and targets is not None
    boxes, found_xyxy_px, found_labels = [], np.zeros((0, 4)), np.zeros(0, np.int64)
    if detections is not None:
        [host] = to_host([detections], ("scores", "labels", "boxes"))
        found = read_detections(host, "drawing detections")
        kept = np.flatnonzero(found.scores >= threshold)
        kept = kept[np.argsort(found.scores[kept], kind="stable")]
        found_xyxy_px, found_labels = found.boxes_xyxy_px[kept], found.labels[kept]
        for corners, label, score in zip(found_xyxy_px, found_labels.tolist(), found.scores[kept], strict=True):
            color = _DETECTION if compared else class_color(label)
            boxes.append(Box(_scaled(corners, scale), _name(names, label), f"{score:.2f}", color))
    if targets is not None:
        truth = read_targets(targets, "drawing targets").check_boxes("drawing targets")
        for (x, y, width, height), label, crowd in zip(
            truth.boxes_xywh_px, truth.labels.tolist(), truth.crowds, strict=True
        ):
            corners = np.array((x, y, x + width, y + height))
            name = _name(names, label) + (" crowd" if crowd else "")
            if compared and _is_found(corners, found_xyxy_px[found_labels == label]):
                name = ""
            color = _ANNOTATION if compared else class_color(label)
            boxes.append(Box(_scaled(corners, scale), name, "", color, dashed=True))
    return boxes


def _is_found(corners: NDArray, found_xyxy_px: NDArray) -> bool:
    overlaps = iou(torch.from_numpy(corners), torch.from_numpy(found_xyxy_px.astype(np.float64)))
    return bool((overlaps >= _FOUND_IOU).any())


def _scaled(corners: NDArray, scale: float) -> tuple[float, float, float, float]:
    left, top, right, bottom = (float(value) * scale for value in corners)
    return left, top, right, bottom


def _name(names: Mapping[int, str], label: int) -> str:
    name = drawable(names.get(label, str(label)))
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
