"""Arguments that several commands share, and the types of their values. Nothing heavy is imported: --help is quick."""

import argparse
import math
import re
from pathlib import Path
from typing import Any

_MOST = 2**31 - 1  # what counts, sizes and seeds of all libraries can be


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not _is_count(text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1 and at most {_MOST:,}.")
    return int(text)


def counting(text: str) -> int:
    """A whole number of at least 0."""
    if not _is_count(text):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 0 and at most {_MOST:,}.")
    return int(text)


def port(text: str) -> int:
    """A number from 0 to 65535."""
    if not _is_count(text) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to 65535.")
    return int(text)


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1.")
    return value


def above_zero(text: str) -> float:
    """A number above 0."""
    value = _number(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0.")
    return value


def not_negative(text: str) -> float:
    """A number of at least 0."""
    value = _number(text)
    if not (value >= 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0.")
    return value


def batch_size(text: str) -> int | str:
    """A whole number of at least 1, or "auto"."""
    return text if text == "auto" else positive(text)


def duration(text: str) -> str:
    """A time such as 90s, 20m or 1h30m, as it stands; see `seconds_of`."""
    if not seconds_of(text) > 0:
        raise argparse.ArgumentTypeError(f"{text} is no time such as 90s, 20m or 1h30m.")
    return text


def seconds_of(text: str) -> float:
    """The seconds of a time such as 90s, 20m or 1h30m; 0 for what is none."""
    number = r"(\d+(?:\.\d+)?)"
    match = re.fullmatch(f"(?:{number}h)?(?:{number}m)?(?:{number}s)?", text)
    return sum(float(n or 0) * unit for n, unit in zip(match.groups(), (3600, 60, 1), strict=True)) if match else 0.0


def _is_count(text: str) -> bool:
    return text.isdecimal() and len(text) < 20 and int(text) <= _MOST


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a number.") from None


_DATA = "a folder or file (COCO, VOC, YOLO, save_to_disk, Parquet), or a name on the Hub"


def add_data_arguments(parser: argparse.ArgumentParser, required: bool = True, as_option: bool = False) -> Any:
    """The data set and how to read it; returns the group, for what a command adds. `as_option` is for commands whose
    `--format` is another: `--data` and `--data-format`."""
    group = parser.add_argument_group("reading the data")
    if as_option:
        group.add_argument("--data", metavar="DATA", help=_DATA)
    else:
        parser.add_argument("data", metavar="DATA", nargs=None if required else "?", help=_DATA)
    group.add_argument(
        "--data-format" if as_option else "--format",
        dest="format",
        default="auto",
        metavar="NAME",
        help="coco, voc, yolo, saved, hub, or auto (default): find out",
    )
    group.add_argument("--image-dir", type=Path, metavar="DIR", help="where the images of a COCO file are")
    group.add_argument(
        "--class-names", nargs="+", metavar="NAME", help="names of the classes in order, where the source has numbers"
    )
    group.add_argument(
        "--bbox-format",
        default="xywh",
        metavar="NAME",
        help="xywh (default), xyxy or cxcywh in pixels, or one of them followed by _fraction",
    )
    return group


def add_policy_arguments(group: Any) -> None:
    """What becomes of impossible boxes and of images that cannot be used."""
    group.add_argument(
        "--on-bad-box",
        choices=("error", "drop", "clip"),
        default="error",
        help="boxes without area or outside their image: stop (default), leave out, or cut to the image; all counted",
    )
    group.add_argument(
        "--on-bad-image",
        choices=("error", "drop"),
        default="error",
        help="images that are missing, damaged or of another size: stop (default), or leave out and count",
    )


def data_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `load_detection_dataset` and `check_dataset` in these arguments."""
    return {"image_dir": args.image_dir, "class_names": args.class_names, "bbox_format": args.bbox_format}


def add_running_arguments(parser: Any, batch_size: int = 4) -> None:
    """How the model runs: batch, device, threads."""
    parser.add_argument(
        "--batch-size", type=positive, default=batch_size, metavar="N", help=f"images at once (default {batch_size})"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps, or auto (default): the fastest here")
    parser.add_argument(
        "--threads", type=positive, default=4, metavar="N", help="that read images while the model works (default 4)"
    )
