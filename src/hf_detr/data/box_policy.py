"""Which boxes are invalid, and what is done with them; whatever is done is counted and reported.

The rule is one for loading a data set, for the image processor and for the trainer: a box that is not finite, has no
width or height, lies outside its image, or reaches beyond it by more than `EDGE_TOLERANCE_PX` is bad, and `on_bad_box`
says what happens to it. A smaller overhang is clipped everywhere without a word.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from warnings import warn

ON_BAD_BOX = ("error", "drop", "clip", "keep")
# What rounding, or corners counted from 0 in a format that counts from 1, makes of a box that ends at the edge.
EDGE_TOLERANCE_PX = 1.0

BOX_FORMATS = ("xywh", "xyxy", "cxcywh", "xywh_fraction", "xyxy_fraction", "cxcywh_fraction")

Box = tuple[float, float, float, float]


def to_xywh_px(box: Box, box_format: str, width: int, height: int) -> Box:
    """One of `BOX_FORMATS` -> xywh in pixels; `_fraction` formats count in widths and heights of the image."""
    a, b, c, d = (float(value) for value in box)
    layout, _, fraction = box_format.partition("_")
    if layout == "xyxy":
        c, d = c - a, d - b
    elif layout == "cxcywh":
        a, b = a - c / 2, b - d / 2
    return (a * width, b * height, c * width, d * height) if fraction else (a, b, c, d)


def box_problem(box_xywh_px: Box, width: int, height: int) -> str | None:
    """What is wrong with a box of a `width` x `height` image, in two or three words, or None."""
    if len(box_xywh_px) != 4:
        return f"{len(box_xywh_px)} numbers"
    x, y, w, h = box_xywh_px
    if not math.isfinite(x + y + w + h):
        return "not finite"
    if w < 0 or h < 0:
        return "negative size"
    if w == 0 or h == 0:
        return "no area"
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return "outside the image"
    slack = EDGE_TOLERANCE_PX + 1e-3 * EDGE_TOLERANCE_PX  # float32 columns
    if x < -slack or y < -slack or x + w > width + slack or y + h > height + slack:
        return "partly outside the image"
    return None


def clip_box(box_xywh_px: Box, width: int, height: int) -> Box | None:
    """The part of a box inside its image, or None where there is none or the box is not finite."""
    if len(box_xywh_px) != 4:
        return None
    x, y, w, h = box_xywh_px
    left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    if x >= 0 and y >= 0 and x + w <= width and y + h <= height and w > 0 and h > 0:
        return box_xywh_px  # unchanged to the last bit
    # NaN fails every comparison, so it ends here too
    return (left, top, right - left, bottom - top) if right > left and bottom > top else None


def is_area_of(area: float, box_xywh_px: Box) -> bool:
    """Whether an area is the box's own (a bad box's too: negative, NaN or infinite) rather than that of a mask."""
    own = box_xywh_px[2] * box_xywh_px[3]
    return math.isclose(area, own, rel_tol=1e-6) or (math.isnan(area) and math.isnan(own))  # columns are float32


def look_like_fractions(boxes_xywh_px: list[Box], image_side_px: int) -> bool:
    """Whether all boxes of a split are numbers up to 1 although its largest image side is not a few pixels."""
    return bool(boxes_xywh_px) and image_side_px > 8 and all(max(box) <= 1.0 for box in boxes_xywh_px)


def look_like_corners(boxes_xywh_px: list[Box], sizes_wh: list[tuple[int, int]]) -> bool:
    """Whether boxes given as xywh are xyxy: some leave their image, and all make sense as corners."""
    outside = 0
    for (x, y, w, h), (width, height) in zip(boxes_xywh_px, sizes_wh, strict=True):
        if not (0 <= x < w <= width + EDGE_TOLERANCE_PX and 0 <= y < h <= height + EDGE_TOLERANCE_PX):
            return False
        outside += x + w > width + EDGE_TOLERANCE_PX or y + h > height + EDGE_TOLERANCE_PX
    return outside > 0


@dataclass
class BoxPolicy:
    """`on_bad_box` applied to the boxes of one split or image, with counts.

    "error": the first bad box raises. "drop": bad boxes are left out. "clip": boxes partly outside (an infinite side
    among them) are clipped to the image, other bad boxes left out. "keep": nothing is changed (for looking at what is
    wrong; not for training).
    """

    on_bad_box: str
    split: str = ""
    boxes: int = 0
    dropped: Counter = field(default_factory=Counter)
    clipped: int = 0
    first: str | None = None

    def __post_init__(self):
        if self.on_bad_box not in ON_BAD_BOX:
            raise ValueError(f"on_bad_box must be one of {ON_BAD_BOX}, got {self.on_bad_box!r}.")

    def __call__(self, box_xywh_px: Box, width: int, height: int, where: str) -> Box | None:
        """The box to use, or None to leave it out. Raises ValueError naming `where` under "error"."""
        self.boxes += 1
        if self.on_bad_box == "keep":
            return box_xywh_px
        problem = box_problem(box_xywh_px, width, height)
        if problem is None:
            inside = clip_box(box_xywh_px, width, height)  # only what the tolerance allows is clipped
            if inside is not None:
                return inside
            problem = "no area"
        if self.on_bad_box == "error":
            raise ValueError(
                f"{where}: box {_short(box_xywh_px)} (left, top, width, height in pixels) of a {width} x {height} "
                f"image: {problem}; correct it, or set on_bad_box='drop' or 'clip'."
            )
        self.first = self.first or f"{where}: {problem}"
        inside = clip_box(box_xywh_px, width, height) if self.on_bad_box == "clip" else None
        if inside is None:
            self.dropped[problem] += 1
        else:
            self.clipped += 1
        return inside

    @property
    def bad(self) -> int:
        """How many bad boxes there were so far."""
        return self.clipped + self.dropped.total()

    def summary(self) -> str:
        """One sentence with the counts; empty where no box was bad."""
        if not self.bad:
            return ""
        parts = []
        if self.dropped:
            kinds = ", ".join(f"{kind}: {count}" for kind, count in self.dropped.most_common())
            parts.append(f"{self.dropped.total()} dropped ({kinds})")
        if self.clipped:
            parts.append(f"{self.clipped} clipped to the image")
        where = f"split {self.split!r}: of" if self.split else "Of"
        return (
            f"{where} {self.boxes:,} boxes {' and '.join(parts)}, on_bad_box={self.on_bad_box!r}; "
            f"the first: {self.first}"
        )

    def warn(self) -> None:
        """Says the counts, once, where there is something to say."""
        if self.bad:
            warn(self.summary(), stacklevel=3)


def _short(box: Box) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box) + "]"
