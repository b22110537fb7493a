"""Which images and videos a user means by files, folders and patterns, and the numbers and names they get."""

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from hf_detr.data.formats.base import IMAGE_SUFFIXES
from hf_detr.data.formats.images import image_files

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ts")


def find_files(sources: Sequence[str], leave_out: Path | None = None) -> list[Path]:
    """Files as given; of folders every image in them and below, of patterns the images and videos that match; each
    once, in this order. In folders hidden files are left aside.

    `leave_out`: a folder to leave out, where drawings are written. Raises ValueError for what is not there, or holds no
    image.
    """
    found: dict[Path, Path] = {}  # absolute -> as given
    for source in sources:
        path = Path(source).expanduser()
        if path.is_dir():
            files = list(image_files(path))
            if not files:
                raise ValueError(
                    f"{source}: no image in this folder or below; looked for {', '.join(IMAGE_SUFFIXES)}. Videos are "
                    f"named by themselves, or by a pattern such as '{source}/*.mp4'."
                )
        elif path.exists():
            files = [path]
        else:
            matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
            # a file matched by a pattern without its suffix ("shots/*") need not be an image
            files = [
                match
                for match in matches
                if match.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
                and match.is_file()
                and "__MACOSX" not in match.parts
            ]
            if not files:
                what = "matches no image or video" if glob.has_magic(source) else "no such file or folder"
                raise ValueError(f"{source}: {what}; check the path.")
        for file in files:
            if leave_out is None or not file.resolve().is_relative_to(leave_out.resolve()):
                found.setdefault(file.resolve(), file)
    if sources and not found:
        raise ValueError(f"all images found lie in {leave_out}, where predictions are written; name other ones.")
    return list(found.values())


def is_video(file: Path) -> bool:
    """Whether the name says so."""
    return file.suffix.lower() in VIDEO_SUFFIXES


def image_ids(files: Sequence[Path]) -> list[int]:
    """Where every name is a number of its own (000000000139.jpg), that number, as in COCO; else 1, 2, 3 ..."""
    if all(file.stem.isdecimal() for file in files):
        numbers = [int(file.stem) for file in files]
        if len(set(numbers)) == len(numbers):
            return numbers
    return list(range(1, len(files) + 1))


def drawing_names(files: Iterable[Path], taken: Iterable[str] = ()) -> list[str]:
    """A name in one folder for the drawing of each image or video: its own, numbered where it is in `taken` (lower
    case) or several share it, and with what cannot be printed as %0A."""
    names: list[str] = []
    used = set(taken)
    for file in files:
        suffix = ".mp4" if is_video(file) else ".png" if file.suffix.lower() == ".png" else ".jpg"
        stem = "".join(one if one.isprintable() else quote(os.fsencode(one)) for one in file.stem)
        name, number = f"{stem}{suffix}", 2
        while name.lower() in used:  # some file systems do not tell capitals apart
            name, number = f"{stem}_{number}{suffix}", number + 1
        used.add(name.lower())
        names.append(name)
    return names
