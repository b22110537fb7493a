"""Text on drawings: the font, and names in characters that can be written."""

from functools import cache, lru_cache
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

from ..wording import escaped, printable

# matplotlib brings DejaVu Sans: more alphabets than Pillow's own font, and the same on every machine
_FONT_FILE = str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")


@lru_cache(maxsize=16)
def font(height_px: int) -> ImageFont.FreeTypeFont:
    """The font of all drawings."""
    return ImageFont.truetype(_FONT_FILE, height_px)


def drawable(text: str) -> str:
    r"""`printable`, and characters that the font lacks escaped too ("\u732b"): two such names still look different."""
    glyphs = _glyphs()
    return "".join(one if ord(one) in glyphs else escaped(one) for one in printable(text))


def shortened(text: str, font: ImageFont.FreeTypeFont, width_px: float) -> str:
    """The text, or its beginning and an ellipsis where it is wider than `width_px`."""
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength(text + "…") > width_px:
        text = text[:-1]
    return text + "…"


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(FT2Font(_FONT_FILE).get_charmap())
