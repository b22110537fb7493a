"""VOC's masks without XML: SegmentationClass, SegmentationObject and ImageSets/Segmentation, as CVAT writes them too.

A colour of SegmentationObject is an object, of the class that SegmentationClass has in most of its pixels. Without
SegmentationObject every class in an image is one object, and all are stuff: semantic segmentation. Black and
"background" are no object, nor is VOC's void, index 255 or colour (224, 224, 192).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..masks import MaskError, SegmentFiles, as_entry, boxes_from_masks
from .base import (
    Annotation,
    Findings,
    Format,
    ImageRecord,
    RawDataset,
    check_class_names,
    chosen_splits,
    size_or_report,
    split_name,
    with_train,
)
from .files import read_lines, read_text
from .images import ImageFinder
from .voc import is_voc

_IMAGE_FOLDERS = ("JPEGImages", "images", "Images")
_VOID_INDEX, _VOID_COLOUR = 255, 224 + 256 * 224 + 65536 * 192


def is_voc_masks(root: Path) -> bool:
    """Whether `root` holds PNG files of classes and no XML."""
    return root.is_dir() and any((root / "SegmentationClass").glob("*.png")) and not is_voc(root)


def read_voc_masks(
    root: Path,
    findings: Findings,
    splits: Sequence[str] | None = None,
    masks: bool = True,
    class_names: Sequence[str] | None = None,
) -> RawDataset:
    """Reads the masks of a VOC folder; see the module.

    Classes are those of labelmap.txt (`name:r,g,b::` a line), or `class_names` in the order of the palette's indices
    from 1. Splits are the lists of ImageSets/Segmentation; without, all is "train". Images are numbered by their sorted
    names. Raises ValueError (unless findings are collected) naming the file.
    """
    names, classes = _classes(root, class_names)
    check_class_names(names, root, findings)
    members = _members(root, findings)
    numbers = {stem: index for index, stem in enumerate(sorted({one for stems in members.values() for one in stems}))}
    finder = ImageFinder([*(root / name for name in _IMAGE_FOLDERS), root], (root,))
    result: dict[str, list[ImageRecord]] = {}
    next_id = 1
    for split in chosen_splits(members, splits, root):
        result[split] = []
        for stem in members[split]:
            png = root / "SegmentationClass" / f"{stem}.png"
            image = finder.like(stem) or finder.expected(f"{stem}.jpg")
            size = size_or_report(image, png, split, findings)
            if size is None:
                continue
            record = ImageRecord(image, numbers[stem], *size)
            try:
                _read_objects(root, stem, record, classes, next_id, masks)
            except MaskError as error:
                findings.error("corrupt annotation", png, str(error), split)
                continue
            next_id += len(record.annotations)
            result[split].append(record)
    semantic = not (root / "SegmentationObject").is_dir()
    return RawDataset("voc_masks", f"VOC masks, {root}", names, list(range(len(names))), result, panoptic=semantic)


VOC_MASKS = Format(
    "voc_masks",
    "SegmentationClass/*.png without XML (VOC masks)",
    is_voc_masks,
    read_voc_masks,
    ("masks", "class_names"),
)


class _Classes(NamedTuple):
    """The class of each colour r + 256 g + 65536 b, or of each index of a palette; -1 for none."""

    by_colour: bool
    numbers: dict[int, int]


def _classes(root: Path, class_names: Sequence[str] | None) -> tuple[list[str], _Classes]:
    path = root / "labelmap.txt"
    if class_names is not None:
        numbers = {index: index - 1 for index in range(len(class_names) + 1)}
        return list(class_names), _Classes(False, numbers | {_VOID_INDEX: -1})
    if not path.is_file():
        raise ValueError(
            f"{root}: no labelmap.txt that names the classes; pass class_names=[...] in the order of the palette's "
            "indices from 1."
        )
    names: list[str] = []
    colours = {0: -1, _VOID_COLOUR: -1}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        try:
            red, green, blue = (int(value) for value in rest.partition(":")[0].split(","))
        except ValueError:
            raise ValueError(f"{path}:{number}: expected 'name:r,g,b::', got {line[:99]!r}; correct it.") from None
        is_class = name.strip() != "background"
        colours[red + 256 * green + 65536 * blue] = len(names) if is_class else -1
        names += [name.strip()] if is_class else []
    return names, _Classes(True, colours)


def _members(root: Path, findings: Findings) -> dict[str, list[str]]:
    """Split -> names of its images."""
    every = sorted(path.stem for path in (root / "SegmentationClass").glob("*.png") if not path.name.startswith("."))
    known, members = set(every), {}
    for listing in sorted((root / "ImageSets" / "Segmentation").glob("*.txt")):
        split = split_name(listing.stem)
        stems = dict.fromkeys(line.strip() for line in read_lines(listing, findings, split) if line.strip())
        for stem in [one for one in stems if one not in known]:  # nor is a path out of the folder
            message = f"no SegmentationClass/{stem}.png; add it, or remove the line."
            findings.error("missing annotation", listing, message, split)
        members[split] = [one for one in stems if one in known]
    return with_train(members or {"train": every})


def _read_objects(root: Path, stem: str, record: ImageRecord, classes: _Classes, first_id: int, masks: bool) -> None:
    """Appends the objects of an image. Raises MaskError for a PNG that cannot be used, or a colour of no class."""
    files, size_hw = SegmentFiles(), (record.height, record.width)
    class_png = str(root / "SegmentationClass" / f"{stem}.png")
    object_png = str(root / "SegmentationObject" / f"{stem}.png")
    png = object_png if Path(object_png).is_file() else class_png
    for path in (class_png, png):
        if files(path).shape != size_hw:
            raise MaskError("size differs", f"{path} has size {files(path).shape}, its image {size_hw}; make it anew.")
    ids, class_of = files(png), _class_of(class_png, files(class_png), classes)
    for number in np.unique(ids).tolist():
        mask = ids == number
        votes = class_of[mask][class_of[mask] >= 0]
        if number in (0, _VOID_INDEX, _VOID_COLOUR) or not len(votes):
            continue
        box = tuple(boxes_from_masks(mask[None])[0].tolist())
        record.annotations.append(
            Annotation(
                id=first_id + len(record.annotations),
                bbox_xywh_px=box,
                category=int(np.bincount(votes).argmax()),
                area=float(mask.sum()),
                iscrowd=0,
                where=f"{png}: id {number}",
                segmentation=as_entry({"file": png, "id": number}) if masks else None,
                is_thing=png == object_png,
            )
        )


def _class_of(path: str, ids: NDArray, classes: _Classes) -> NDArray:
    """(h, w) the class of each pixel, -1 for none."""
    values = found = np.unique(ids)
    if classes.by_colour:
        with Image.open(path) as image:
            palette = image.getpalette() if image.mode == "P" else None
        if palette is not None:
            red, green, blue = np.array(palette + [0] * (768 - len(palette))).reshape(-1, 3)[found].T
            values = red + 256 * green + 65536 * blue
    unknown = [value for value in values.tolist() if value not in classes.numbers]
    if unknown:
        red, green, blue = (unknown[0] >> shift & 255 for shift in (0, 8, 16))
        what = f"colour ({red}, {green}, {blue})" if classes.by_colour else f"index {unknown[0]}"
        raise MaskError("unreadable", f"the {what} is that of no class; name the class, or correct the file.")
    return np.array([classes.numbers[value] for value in values.tolist()])[np.searchsorted(found, ids)]
