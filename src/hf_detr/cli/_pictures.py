"""Which pictures a user means by files, folders and patterns, and the numbers they get."""

import glob
from collections.abc import Sequence
from pathlib import Path

from hf_detr.data.formats.base import IMAGE_SUFFIXES


def find_pictures(sources: Sequence[str], besides: Path | None = None) -> list[Path]:
    """Files as given; of folders every picture in them and below, of patterns what matches; each once, in this order.

    `besides`: a folder to leave out, where pictures are written. Raises ValueError for what is not there, or holds no
    picture.
    """
    found: dict[Path, Path] = {}  # absolute -> as given
    for source in sources:
        path = Path(source).expanduser()
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if _is_picture(file))
            if not files:
                raise ValueError(
                    f"{source}: no picture in this folder or below; looked for {', '.join(IMAGE_SUFFIXES)}."
                )
        elif path.exists():
            files = [path]
        else:
            matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
            # a file matched by a pattern without its suffix ("shots/*") need not be a picture
            files = [match for match in matches if _is_picture(match)]
            if not files:
                what = "matches no picture" if glob.has_magic(source) else "no such file or folder"
                raise ValueError(f"{source}: {what}; check the path.")
        for file in files:
            if besides is None or not file.resolve().is_relative_to(besides.resolve()):
                found.setdefault(file.resolve(), file)
    if not found:
        raise ValueError(f"all pictures found lie in {besides}, where predictions are written; name other ones.")
    return list(found.values())


def image_ids(files: Sequence[Path]) -> list[int]:
    """Where every name is a number of its own (000000000139.jpg), that number, as in COCO; else 1, 2, 3 ..."""
    if all(file.stem.isdecimal() for file in files):
        numbers = [int(file.stem) for file in files]
        if len(set(numbers)) == len(numbers):
            return numbers
    return list(range(1, len(files) + 1))


def picture_names(files: Sequence[Path]) -> list[str]:
    """A name in one folder for the drawn copy of each: its own, numbered where several files share it."""
    names: list[str] = []
    taken: set[str] = set()
    for file in files:
        suffix = ".png" if file.suffix.lower() == ".png" else ".jpg"
        name, number = f"{file.stem}{suffix}", 2
        while name.lower() in taken:  # some file systems do not tell capitals apart
            name, number = f"{file.stem}_{number}{suffix}", number + 1
        taken.add(name.lower())
        names.append(name)
    return names


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
