"""A file that somebody sent as an image in memory, unless it is too large or none."""

import os
from pathlib import Path
from typing import BinaryIO

from PIL import Image
from torch import Tensor

from hf_detr.image_processing.loading import load_image
from hf_detr.image_processing_detr import DetrImageProcessor
from hf_detr.wording import printable

from .limits import MIB, Limits, Refused

# images of pixels alone: PIL's others run programs (EPS) or hold what no detector is asked about
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")
_LONGEST_NAME = 100
_SMALLER = "send a smaller one"


def shown_name(name: str | None) -> str:
    """A file's name as a sentence may hold it."""
    name = printable(Path(name or "image").name) or "image"
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def open_image(file: BinaryIO | Path, name: str, processor: DetrImageProcessor, limits: Limits) -> Tensor:
    """(C, H, W) as `load_image` gives it. Raises `Refused`, with the name, for what is no image or beyond the limits.

    The size is read from the file's header, so that no more is ever decoded than the limit allows.
    """
    if isinstance(file, Path):
        try:
            with file.open("rb") as opened:
                return open_image(opened, name, processor, limits)
        except OSError as error:
            raise Refused(f"{name}: the server no longer has this file; send it again.", 410) from error
    num_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    if num_bytes > limits.image_bytes:
        raise Refused(
            f"{name}: {num_bytes / MIB:.1f} MiB; at most {limits.image_bytes / MIB:g} MiB are taken, {_SMALLER}.", 413
        )
    if not num_bytes:
        raise Refused(f"{name}: the file is empty; send an image.", 422)
    try:
        Image.init()
        image = Image.open(file, formats=[one for one in _FORMATS if one in Image.OPEN])
    except Image.DecompressionBombError as error:
        raise Refused(f"{name}: far too many pixels; {_SMALLER}.", 413) from error
    except Exception as error:  # PIL's readers raise nearly anything for a damaged header
        raise Refused(
            f"{name}: not an image that can be read; send one of {', '.join(_FORMATS)}, whole.", 422
        ) from error
    with image:
        width, height = image.size
        if width * height > limits.image_px:
            raise Refused(
                f"{name}: {width:,} x {height:,} pixels; at most {limits.image_px / 1e6:g} million are taken, "
                f"{_SMALLER}.",
                413,
            )
        try:
            return load_image(
                image, name, do_convert_rgb=processor.do_convert_rgb, do_exif_transpose=processor.do_exif_transpose
            )
        except MemoryError:
            raise
        except ValueError as error:  # a sentence already
            raise Refused(str(error), 422) from error
        except Exception as error:
            raise Refused(f"{name}: the image is damaged ({error}); send it whole.", 422) from error
