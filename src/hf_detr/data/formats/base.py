"""What every reader of annotation files makes of them, before it becomes a `datasets` object."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from warnings import warn

from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
# what PIL raises for files that are no image, or a damaged one (UnidentifiedImageError is an OSError)
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)  # EXIF tag, and its values that swap width and height
_SPLIT_NAMES = {"val": "validation", "valid": "validation", "dev": "validation", "testing": "test", "training": "train"}


@dataclass
class Annotation:
    """One object: `where` names its file and, in text formats, its line."""

    id: int
    bbox_xywh_px: tuple[float, float, float, float]
    category: int
    area: float
    iscrowd: int
    where: str


@dataclass
class ImageRecord:
    """One picture, not opened: its file, the upright size in pixels, and its objects."""

    path: Path
    image_id: int
    width: int
    height: int
    annotations: list[Annotation] = field(default_factory=list)


@dataclass
class RawDataset:
    """What was read: `format` and `description` say what was found, `splits` maps names to pictures."""

    format: str
    description: str
    class_names: list[str]
    original_ids: list[int]
    splits: dict[str, list[ImageRecord]]


@dataclass
class Problem:
    """One thing wrong with a data set. `kind` is a short constant to count by, `where` a file, line or image id."""

    severity: str  # "error": training would learn something false or stop; "warning": worth a look
    kind: str
    where: str
    message: str
    split: str | None = None


@dataclass
class Findings:
    """Where readers report what is wrong: raised at once while loading, collected while checking."""

    collect: bool = False
    problems: list[Problem] = field(default_factory=list)

    def error(self, kind: str, where: str | Path, message: str, split: str | None = None) -> None:
        """Raises ValueError("where: message") unless problems are being collected; the caller then skips the item."""
        if not self.collect:
            raise ValueError(f"{where}: {message}")
        self.problems.append(Problem("error", kind, str(where), message, split))

    def warning(self, kind: str, where: str | Path, message: str, split: str | None = None) -> None:
        """Warns, or collects."""
        if not self.collect:
            warn(f"{where}: {message}", stacklevel=2)
        self.problems.append(Problem("warning", kind, str(where), message, split))


def split_name(text: str) -> str:
    """The usual name of a split: "val", "valid" and "dev" are "validation", as on the Hub; others stay."""
    return _SPLIT_NAMES.get(text.lower(), text)


def chosen_splits(found: Iterable[str], wanted: Sequence[str] | None, where: str | Path) -> list[str]:
    """The splits to read, all or the wanted; "val" finds "validation". Raises ValueError for one that is absent."""
    found = list(found)
    if wanted is None:
        return found
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    chosen = [one if one in found else split_name(one) for one in wanted]
    missing = [one for one in chosen if one not in found]
    if missing:
        raise ValueError(f"{where}: no split {missing}; it has {found}.")
    return chosen


def upright_size(file: Path | BinaryIO, decode: bool = False) -> tuple[int, int]:
    """(width, height) in pixels of an image file as it is shown (EXIF orientation applied), from its header alone.

    `decode` reads the pixels too, to see whether they are all there. Raises one of `UNREADABLE` for files that are no
    image.
    """
    with Image.open(file) as image:
        width, height = image.size
        if decode:
            image.load()
        if not decode and image.format == "PNG" and "exif" not in image.info:
            return width, height  # PIL would decode the whole picture to look for EXIF behind it, where nobody puts it
        return (height, width) if image.getexif().get(_ORIENTATION) in _SIDEWAYS else (width, height)


def size_or_report(path: Path, where: str | Path, split: str, findings: Findings) -> tuple[int, int] | None:
    """`upright_size`, or None with the reason reported."""
    try:
        return upright_size(path)
    except FileNotFoundError:
        findings.error(
            "missing image", path, f"no such image, needed by {where}; restore it or remove its entry.", split
        )
    except UNREADABLE as error:
        findings.error("corrupt image", path, f"not a readable image ({error}); replace it or remove its entry.", split)
    return None


def report_missing_images(images: Sequence[ImageRecord], split: str, source: str | Path, findings: Findings) -> None:
    """An error naming the first of the image files that are absent, and how many there are."""
    if findings.collect:
        return  # whoever collects opens every picture anyway, and reports each
    missing = [image.path for image in images if not image.path.is_file()]
    if missing:
        findings.error(
            "missing image", missing[0],
            f"no such image, named in {source} (split {split!r}); {len(missing)} of {len(images)} images are missing. "
            "Restore the files, or remove their entries.", split,
        )  # fmt: skip


def check_class_names(names: Sequence[str], where: str | Path) -> None:
    """Raises ValueError for names that occur twice, are empty, or when there are none."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(
            f"{where}: class names must be unique, got {twice} more than once; rename one, or merge their annotations."
        )
    if not names or any(not name for name in names):
        raise ValueError(
            f"{where}: expected at least one class and no empty name, got {list(names)}; name every class."
        )
