"""Pascal VOC folders: JPEGImages, Annotations, ImageSets/Main; or pictures and XML files side by side.

Corners. VOC counts pixels from 1 and includes the last one: an object over a whole row has xmin 1 and xmax `width`.
So left = xmin - 1 and right = xmax as distances from the image's edge, and width = xmax - xmin + 1 (what detectron2
does; mmdetection shifts all four by one, torchvision none: they differ by one pixel at most). Labelling tools that
write VOC's XML from their own corners clamp 0 to 1, so the same rule keeps their boxes inside the image; for files of
tools that count from 0, `voc_first_pixel=0` takes the corners as they are. Where xmax = xmin or ymax = ymin, the box
was a click without a drag: it has no area, and is treated as bad.

Objects marked `difficult` are kept as objects like any other (`voc_difficult="keep"`); "ignore" marks them iscrowd,
which COCO evaluation, like VOC's own, then leaves out of account, and training too.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from .base import (
    IMAGE_SUFFIXES,
    Annotation,
    Findings,
    ImageRecord,
    RawDataset,
    check_class_names,
    chosen_splits,
    report_missing_images,
    size_or_report,
    split_name,
)

_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "imgs")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def is_voc(root: Path) -> bool:
    """Whether `root` holds VOC annotations: in Annotations, or side by side with the pictures, in it or one below."""
    return any(any(folder.glob("*.xml")) for folder in (root / "Annotations", *_side_by_side(root).values()))


def read_voc(
    root: Path,
    findings: Findings,
    splits: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    first_pixel: int = 1,
    difficult: str = "keep",
) -> RawDataset:
    """Reads a VOC folder; see the module for what it makes of corners and `difficult`.

    Splits are the lists of ImageSets/Main (those of the form `aeroplane_train.txt`, a class in or out, are not
    splits); without lists, all is "train"; folders train, valid, test of pictures beside their XML are splits too.
    Classes are `class_names` in that order, or all names found, sorted. Images are numbered by their sorted names.
    Raises ValueError (unless findings are collected) naming file and line.
    """
    if first_pixel not in (0, 1):
        raise ValueError(f"voc_first_pixel must be 1 (VOC's own) or 0, got {first_pixel!r}.")
    if difficult not in ("keep", "ignore"):
        raise ValueError(f"voc_difficult must be 'keep' or 'ignore', got {difficult!r}.")
    members, unlisted = _members(root, findings)
    if unlisted:
        findings.warning(
            "unlisted annotation", root / "Annotations",
            f"{unlisted} annotation files are in no list of ImageSets/Main and are not read.",
        )  # fmt: skip
    # every file of every split is read once, whatever the splits wanted: classes and numbers then never depend on them
    files = sorted({path for paths in members.values() for path in paths})
    parsed = {path: _Parsed(path, findings) for path in files if path.is_file()}
    if class_names is None:
        names = sorted({name for file in parsed.values() for name, *_ in file.objects})
        check_class_names(names, root)
    else:
        names = list(class_names)
        check_class_names(names, "class_names")
    class_ids = {name: index for index, name in enumerate(names)}
    numbers = {path: index for index, path in enumerate(files)}
    first_object = dict(zip(parsed, _running_sum([len(file.objects) for file in parsed.values()]), strict=True))
    pictures = {folder: _by_stem(folder) for folder in _picture_folders(root, files)}

    result = {}
    for split in chosen_splits(members, splits, root):
        images = []
        for path in members[split]:
            file = parsed.get(path)
            if file is None or file.broken:
                continue  # reported when it was listed or parsed
            picture = _picture(root, path, file.filename, pictures)
            width, height = file.size_wh or (0, 0)
            if not (width > 0 and height > 0):
                size = size_or_report(picture, path, split, findings)
                if size is None:
                    continue
                width, height = size
            record = ImageRecord(picture, numbers[path], width, height)
            for offset, (name, corners, is_difficult, line) in enumerate(file.objects):
                where = f"{path}:{line}"
                if name not in class_ids:
                    message = f"unknown class {name!r}, expected one of {names}; add it to class_names or rename it."
                    findings.error("unknown class", where, message, split)
                    continue
                box = _box(corners, first_pixel)
                record.annotations.append(
                    Annotation(
                        id=first_object[path] + offset + 1,
                        bbox_xywh_px=box,
                        category=class_ids[name],
                        area=box[2] * box[3],
                        iscrowd=int(is_difficult and difficult == "ignore"),
                        where=where,
                    )
                )
            images.append(record)
        report_missing_images(images, split, root, findings)
        result[split] = images
    return RawDataset("voc", f"Pascal VOC, {root}", names, list(range(len(names))), result)


class _Parsed:
    """One XML file: `objects` as (name, corners, difficult, line); `broken` where it could not be read."""

    def __init__(self, path: Path, findings: Findings):
        self.objects: list[tuple[str, tuple[float, ...], bool, int]] = []
        self.filename, self.size_wh, self.broken = "", None, False
        text = path.read_bytes()
        try:
            root = ElementTree.fromstring(text)
        except ElementTree.ParseError as error:
            self.broken = True
            line = error.position[0]
            findings.error("corrupt annotation", f"{path}:{line}", f"not well-formed XML ({error}); mend or remove it.")
            return
        self.filename = (root.findtext("filename") or "").strip()
        try:
            self.size_wh = int(root.findtext("size/width") or 0), int(root.findtext("size/height") or 0)
        except ValueError:
            self.size_wh = None  # then the picture's header decides
        lines = [text.count(b"\n", 0, match.start()) + 1 for match in re.finditer(rb"<object[\s>]", text)]
        for index, element in enumerate(root.findall("object")):
            line = lines[index] if index < len(lines) else 1
            name = (element.findtext("name") or "").strip()
            values = [element.findtext(f"bndbox/{corner}") for corner in _CORNERS]
            try:
                corners = tuple(float(value) for value in values)
            except (TypeError, ValueError):
                got = dict(zip(_CORNERS, values, strict=True))
                message = f"expected a bndbox with four numbers, got {got}; correct or remove the object."
                findings.error("corrupt annotation", f"{path}:{line}", message)
                continue
            if not name:
                message = "an object without a name; name its class or remove it."
                findings.error("corrupt annotation", f"{path}:{line}", message)
                continue
            self.objects.append((name, corners, (element.findtext("difficult") or "0").strip() == "1", line))


def _box(corners: tuple[float, ...], first_pixel: int) -> tuple[float, float, float, float]:
    left, top, right, bottom = corners
    width, height = right - left, bottom - top
    if first_pixel == 1:
        left, top = left - 1, top - 1
        if width > 0 and height > 0:  # a click without a drag stays one
            width, height = width + 1, height + 1
    return left, top, width, height


def _members(root: Path, findings: Findings) -> tuple[dict[str, list[Path]], int]:
    """Split -> its XML files, and how many XML files are in none."""
    annotations = root / "Annotations"
    if not annotations.is_dir():
        side_by_side = _side_by_side(root)
        return {split: sorted(folder.glob("*.xml")) for split, folder in side_by_side.items()}, 0
    members: dict[str, list[Path]] = {}
    for listing in sorted((root / "ImageSets" / "Main").glob("*.txt"), key=_usual_order):
        entries = [(number, line.split()) for number, line in enumerate(listing.read_text().splitlines(), start=1)]
        entries = [(number, fields) for number, fields in entries if fields]
        if any(len(fields) > 1 for _, fields in entries):
            continue  # name and 1 / -1 / 0: a class in or out, not a split
        split = split_name(listing.stem)
        if split in members:
            findings.error(
                "duplicate split", listing, f"a second list for split {split!r}; merge the two lists.", split
            )
            continue
        listed: dict[Path, int] = {}
        for number, (name,) in entries:
            path = annotations / f"{Path(name).stem if name.endswith(IMAGE_SUFFIXES) else name}.xml"
            if not path.is_file():
                message = (
                    f"no annotation file {path}; add it (without objects if the image is empty) or remove the line."
                )
                findings.error("missing annotation", f"{listing}:{number}", message, split)
                continue
            if path in listed:
                message = f"{name!r} a second time, first in line {listed[path]}; remove one of them."
                findings.error("duplicate id", f"{listing}:{number}", message, split)
                continue
            listed[path] = number
        members[split] = list(listed)
    every = sorted(annotations.glob("*.xml"))
    if not members:
        return {"train": every}, 0
    return members, len(set(every) - {path for paths in members.values() for path in paths})


def _side_by_side(root: Path) -> dict[str, Path]:
    """Folders that hold XML files beside pictures: `root` itself, or those below it, by split."""
    if not root.is_dir():
        return {}
    if any(root.glob("*.xml")):
        return {"train": root}
    below = sorted(
        (folder for folder in root.iterdir() if folder.is_dir() and folder.name != "Annotations"), key=_usual_order
    )
    return {split_name(folder.name): folder for folder in below if any(folder.glob("*.xml"))}


def _usual_order(path: Path) -> tuple[int, str]:
    order = ("train", "validation", "test")
    name = split_name(path.stem)
    return (order.index(name) if name in order else len(order), name)


def _picture_folders(root: Path, files: Sequence[Path]) -> list[Path]:
    folders = [root / name for name in _IMAGE_FOLDERS] + sorted({path.parent for path in files}) + [root]
    return [folder for folder in folders if folder.is_dir()]


def _by_stem(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}


def _picture(root: Path, path: Path, filename: str, pictures: dict[Path, dict[str, Path]]) -> Path:
    """The picture of an XML file: of the same name, else the one it names itself; a path that is absent if none is."""
    for stem in (path.stem, Path(filename).stem):
        for by_stem in pictures.values():
            if stem in by_stem:
                return by_stem[stem]
    folder = root / "JPEGImages" if (root / "JPEGImages").is_dir() else path.parent
    return folder / (filename or f"{path.stem}.jpg")


def _running_sum(counts: Sequence[int]) -> list[int]:
    """How many come before each."""
    total, sums = 0, []
    for count in counts:
        sums.append(total)
        total += count
    return sums
