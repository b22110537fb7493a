"""What can be wrong with a mask beside its box, and is found only when it is decoded."""

import math
from typing import Any

import numpy as np

from .box_policy import EDGE_TOLERANCE_PX, Box
from .masks import MaskError, SegmentFiles, as_entry, decode_segmentation


def check_mask(segmentation: Any, box_xywh_px: Box, size_hw: tuple[int, int], files: SegmentFiles | None) -> None:
    """Raises MaskError for a mask that cannot be decoded, is empty, or lies outside its image or its box.

    A polygon lies outside its image where a point is more than a pixel beyond the edge, as boxes do; a mask outside its
    box where less than half of it is in the box and a pixel around it. Without `files` nothing is decoded.
    """
    height, width = size_hw
    entry = as_entry(segmentation)
    for polygon in (entry or {}).get("polygons") or ():
        x, y, slack = np.array(polygon[::2]), np.array(polygon[1::2]), EDGE_TOLERANCE_PX
        if min(x.min(), y.min()) < -slack or x.max() > width + slack or y.max() > height + slack:
            raise MaskError(
                "outside its image",
                f"a polygon from ({x.min():g}, {y.min():g}) to ({x.max():g}, {y.max():g}) in an image of {width} x "
                f"{height} pixels; correct it.",
            )
    if files is None:
        return
    mask = decode_segmentation(entry, size_hw, "the mask", files)
    area = int(mask.sum())
    if not area:
        raise MaskError("empty", "the mask has no pixel; correct it or remove the object.")
    if not all(map(math.isfinite, box_xywh_px)):
        return  # the box is at fault
    left, top, w, h = box_xywh_px
    rows = slice(max(0, math.floor(top) - 1), max(0, math.ceil(top + h) + 1))
    columns = slice(max(0, math.floor(left) - 1), max(0, math.ceil(left + w) + 1))
    inside = int(mask[rows, columns].sum())
    if 2 * inside < area:
        numbers = ", ".join(f"{value:g}" for value in box_xywh_px)
        raise MaskError(
            "outside its box",
            f"{area - inside} of the {area} pixels of the mask are outside its box [{numbers}] (xywh); correct one of "
            "the two.",
        )
