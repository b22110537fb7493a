"""What an annotation format is, and what every reader makes of its files before they become a `datasets` object."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from warnings import warn

from PIL import Image

from ..masks import MaskError, as_entry

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
# what PIL raises for files that are no image, or a damaged one (UnidentifiedImageError is an OSError)
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)  # EXIF tag, and its values that swap width and height
_SPLIT_NAMES = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "validation": "validation", "val": "validation", "valid": "validation", "dev": "validation",
}  # fmt: skip
USUAL_SPLITS = ("train", "validation", "test")
MASK_KINDS = "mask: "  # how the kinds of problems of masks begin
# kinds of problems that on_bad_image="drop" is the answer to
BAD_IMAGE = ("missing image", "corrupt image", "size differs", "bad file name")


@dataclass(frozen=True)
class Format:
    """An annotation format: one file of this folder makes one, and `formats.FORMATS` lists them.

    `is_here(root)` says from the names of files, or the beginnings of a few, whether the folder or file `root` is in
    the format; it raises nothing. `read(root, findings, splits, **options)` returns a `RawDataset` of all splits, or of
    those wanted, and reports to `findings` what is wrong, with file and line; `options` are the names of the keyword
    arguments of `load_detection_dataset` that it takes. `looks_for` tells a user what makes a folder the format.
    """

    name: str
    looks_for: str
    is_here: Callable[[Path], bool]
    read: Callable[..., "RawDataset"]
    options: tuple[str, ...] = ()


@dataclass
class Annotation:
    """One object: `where` names its file and, in text formats, its line; `segmentation` is an entry of `masks`."""

    id: int
    bbox_xywh_px: tuple[float, float, float, float]
    category: int
    area: float
    iscrowd: int
    where: str
    segmentation: dict[str, Any] | None = None
    is_thing: bool = True


@dataclass
class ImageRecord:
    """One image, not opened: its file, the upright size in pixels, its objects, and how many faulty ones it lost."""

    path: Path
    image_id: int
    width: int
    height: int
    annotations: list[Annotation] = field(default_factory=list)
    left_out: int = 0


@dataclass
class RawDataset:
    """What was read: `format` and `description` say what was found, `splits` maps names to images. `panoptic` where
    every segment of an image is an object."""

    format: str
    description: str
    class_names: list[str]
    original_ids: list[int]
    splits: dict[str, list[ImageRecord]]
    panoptic: bool = False


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
    """Where readers report what is wrong: raised at once while loading, collected while checking.

    Problems of the kinds in `dropped` are no errors: the caller leaves the item out, and they are counted. Problems of
    masks are errors with `need_masks` alone, for boxes are learned without.
    """

    collect: bool = False
    dropped: tuple[str, ...] = ()
    need_masks: bool = False
    problems: list[Problem] = field(default_factory=list)

    def error(self, kind: str, where: str | Path, message: str, split: str | None = None) -> None:
        """Raises ValueError("where: message") unless problems are collected or dropped; the caller then skips it."""
        severity = "warning" if kind in self.dropped else "error"
        if severity == "error" and not self.collect:
            raise ValueError(f"{where}: {message}")
        self.problems.append(Problem(severity, kind, str(where), message, split))

    def warning(self, kind: str, where: str | Path, message: str, split: str | None = None) -> None:
        """Warns, or collects."""
        if not self.collect:
            warn(f"{where}: {message}", stacklevel=2)
        self.problems.append(Problem("warning", kind, str(where), message, split))

    def mask(self, error: MaskError, where: str | Path, split: str | None = None) -> None:
        """A mask that cannot be used, collected: its object is left without one."""
        kind, severity = f"{MASK_KINDS}{error.kind}", "error" if self.need_masks else "warning"
        self.problems.append(Problem(severity, kind, str(where), str(error), split))

    def masked(self, segmentation: Any, where: str | Path, split: str | None = None) -> dict[str, Any] | None:
        """`masks.as_entry`, or None with what is wrong collected."""
        try:
            return as_entry(segmentation)
        except MaskError as error:
            self.mask(error, where, split)
            return None

    def warn_of_masks(self, split: str) -> None:
        """Says how many masks of a split cannot be used, once, where there are some and none is collected."""
        found = [one for one in self.problems if one.kind.startswith(MASK_KINDS) and one.split == split]
        if found and not self.collect:
            count, kinds, first = _counted(found)
            said = f"split {split!r}: {count} masks cannot be used ({kinds}), their objects have boxes alone; {first}"
            warn(said, stacklevel=3)

    def summary_of_dropped(self, split: str) -> str:
        """One sentence with the counts of what was dropped from a split; empty where nothing was."""
        dropped = [one for one in self.problems if one.kind in self.dropped and one.split == split]
        if not dropped:
            return ""
        count, kinds, first = _counted(dropped)
        return f"split {split!r}: {count} images dropped ({kinds}), on_bad_image='drop'; {first}"


def _counted(problems: list[Problem]) -> tuple[str, str, str]:
    """How many there are, how many of which kind, and the first."""
    kinds = ", ".join(f"{kind}: {count}" for kind, count in Counter(one.kind for one in problems).most_common())
    return f"{len(problems):,}", kinds, f"the first: {problems[0].where}: {problems[0].message}"


def split_name(text: str) -> str:
    """The usual name of a split: "val", "valid" and "dev" are "validation", as on the Hub; others stay."""
    return _SPLIT_NAMES.get(text.lower(), text)


def with_train(found: dict[str, Any]) -> dict[str, Any]:
    """The splits, usual ones first; a lone one of an unusual name is "train", and so is "trainval" without "train"."""
    if "train" not in found:
        lone = next(iter(found)) if len(found) == 1 else "trainval"
        if lone not in USUAL_SPLITS:
            found = {"train" if name == lone else name: one for name, one in found.items()}
    order = [name for name in USUAL_SPLITS if name in found]
    return {name: found[name] for name in [*order, *(name for name in found if name not in order)]}


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
            return width, height  # PIL would decode the whole image to look for EXIF behind its pixels
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


def report_missing_images(
    images: Sequence[ImageRecord], split: str, source: str | Path, findings: Findings
) -> list[ImageRecord]:
    """The images whose files are there; an error names the first that is absent, and how many there are."""
    if findings.collect:
        return list(images)  # a check opens every image anyway, and reports each
    missing = [image for image in images if not image.path.is_file()]
    for image in missing:
        findings.error(
            "missing image", image.path,
            f"no such image, named in {source} (split {split!r}); {len(missing)} of {len(images)} images are missing. "
            "Restore the files, or remove their entries.", split,
        )  # fmt: skip
    return [image for image in images if image.path.is_file()] if missing else list(images)


def is_utf8(text: str) -> bool:
    """False for bytes of a file name that are no UTF-8, and for halves of UTF-16 in JSON: no column can hold them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def in_utf8(images: Sequence[ImageRecord], split: str, findings: Findings) -> list[ImageRecord]:
    """The images whose paths a column can hold; the others are reported."""
    for image in images:
        if not is_utf8(str(image.path)):
            message = "its name, or a folder's above it, is no UTF-8; rename it."
            findings.error("bad file name", image.path, message, split)
    return [image for image in images if is_utf8(str(image.path))]


def check_class_names(names: Sequence[str], where: str | Path, findings: Findings) -> None:
    """Raises ValueError for names that occur twice or are empty; that there is none at all is reported."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(
            f"{where}: class names must be unique, got {twice} more than once; rename one, or merge their annotations."
        )
    unprintable = [name for name in names if not is_utf8(name)]
    if unprintable:
        raise ValueError(f"{where}: the class name {unprintable[0]!r} is no valid text; rename it.")
    if any(not name for name in names):
        raise ValueError(f"{where}: a class has an empty name, of {list(names)!r:.200}; name every class.")
    if not names:
        findings.error("no class", where, "no class could be read; annotate some objects, or correct the annotations.")
