"""Pascal VOC folders: JPEGImages, Annotations, ImageSets/Main; or images and XML files side by side.

Corners. VOC counts pixels from 1 and includes the last one: an object over a whole row has xmin 1 and xmax `width`.
So left = xmin - 1 and right = xmax as distances from the image's edge, and width = xmax - xmin + 1 (what detectron2
does; mmdetection shifts all four by one, torchvision none: they differ by one pixel at most). Labelling tools that
write VOC's XML from their own corners clamp 0 to 1, so the same rule keeps their boxes inside the image; for files of
tools that count from 0, `voc_first_pixel=0` takes the corners as they are. Where xmax = xmin or ymax = ymin, the box
was a click without a drag: it has no area, and is treated as bad.

Objects marked `difficult` are kept as objects like any other (`voc_difficult="keep"`); "ignore" marks them iscrowd,
which COCO evaluation, like VOC's own, then leaves out of account, and training too.

Masks. Where an image has a PNG in SegmentationObject, the colour (palette index) n in it is the n-th object of the XML.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..masks import as_entry
from .base import (
    IMAGE_SUFFIXES,
    USUAL_SPLITS,
    Annotation,
    Findings,
    Format,
    ImageRecord,
    RawDataset,
    check_class_names,
    chosen_splits,
    report_missing_images,
    size_or_report,
    split_name,
    with_train,
)
from .files import is_true, pixels, read_lines
from .images import ImageFinder, visible_folders

_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "imgs", "JPEGImage")
_ANNOTATION_FOLDERS = ("Annotations", "annotations", "annots", "Annots", "xmls")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def is_voc(root: Path) -> bool:
    """Whether `root` holds VOC annotations: in a folder of annotations or side by side with the images, in it or in
    folders below, one a split."""
    return root.is_dir() and (_annotation_folder(root) is not None or bool(_split_folders(root)))


def read_voc(
    root: Path,
    findings: Findings,
    splits: Sequence[str] | None = None,
    masks: bool = True,
    class_names: Sequence[str] | None = None,
    voc_first_pixel: int = 1,
    voc_difficult: str = "keep",
) -> RawDataset:
    """Reads a VOC folder; see the module for what it makes of corners, `difficult` and masks.

    Splits are the lists of ImageSets/Main (those of the form `aeroplane_train.txt`, a class in or out, are not
    splits); without lists, all is "train"; folders train, valid, test with images and XML of their own are splits too.
    Classes are `class_names` in that order, or all names found, sorted. Images are numbered by their sorted names.
    Raises ValueError (unless findings are collected) naming file and line.
    """
    if voc_first_pixel not in (0, 1):
        raise ValueError(f"voc_first_pixel must be 1 (VOC's own) or 0, got {voc_first_pixel!r}.")
    if voc_difficult not in ("keep", "ignore"):
        raise ValueError(f"voc_difficult must be 'keep' or 'ignore', got {voc_difficult!r}.")
    members, unlisted = _members(root, findings)
    if unlisted:
        findings.warning(
            "unlisted annotation", _annotation_folder(root) or root,
            f"{unlisted} annotation files are in no list of ImageSets/Main and are not read.",
        )  # fmt: skip
    # every file of every split is read once, whatever the splits wanted: classes and numbers then never depend on them
    files = sorted({path for paths in members.values() for path in paths})
    parsed = {path: _Parsed(path, findings) for path in files if path.is_file()}
    if class_names is None:
        names = sorted({name for file in parsed.values() for name, *_ in file.objects})
        check_class_names(names, root, findings)
    else:
        names = list(class_names)
        check_class_names(names, "class_names", findings)
    class_ids = {name: index for index, name in enumerate(names)}
    numbers = {path: index for index, path in enumerate(files)}
    first_object = dict(zip(parsed, _running_sum([len(file.objects) for file in parsed.values()]), strict=True))
    finders: dict[Path, ImageFinder] = {}

    result = {}
    for split in chosen_splits(members, splits, root):
        images = []
        for path in members[split]:
            file = parsed.get(path)
            if file is None or file.broken:
                continue  # reported when it was listed or parsed
            home = _home(path)
            if home not in finders:
                finders[home] = ImageFinder([*(home / name for name in _IMAGE_FOLDERS), home, root], (home, root))
            finder = finders[home]
            image = _image(finder, path, file.filename)
            width, height = file.size_wh
            if not (width and height):
                size = size_or_report(image, path, split, findings)
                if size is None:
                    continue
                width, height = size
            record = ImageRecord(image, numbers[path], width, height, left_out=file.left_out)
            png = _home(path) / "SegmentationObject" / f"{path.stem}.png"
            has_masks = masks and png.is_file()
            for offset, (name, corners, is_difficult, line, number) in enumerate(file.objects):
                where = f"{path}:{line}"
                if name not in class_ids:
                    message = f"unknown class {name!r}, expected one of {names}; add it to class_names or rename it."
                    findings.error("unknown class", where, message, split)
                    record.left_out += 1
                    continue
                box = _box(corners, voc_first_pixel)
                record.annotations.append(
                    Annotation(
                        id=first_object[path] + offset + 1,
                        bbox_xywh_px=box,
                        category=class_ids[name],
                        area=box[2] * box[3],
                        iscrowd=int(is_difficult and voc_difficult == "ignore"),
                        where=where,
                        segmentation=as_entry({"file": str(png), "id": number}) if has_masks else None,
                    )
                )
            images.append(record)
        result[split] = report_missing_images(images, split, root, findings)
    _report_unannotated(finders, files, findings)
    return RawDataset("voc", f"Pascal VOC, {root}", names, list(range(len(names))), result)


VOC = Format(
    "voc",
    "Annotations/*.xml or *.xml beside images (VOC)",
    is_voc,
    read_voc,
    ("masks", "class_names", "voc_first_pixel", "voc_difficult"),
)


class _Parsed:
    """One XML file: `objects` as (name, corners, difficult, line, number from 1), how many more were faulty; `broken`
    where it could not be read."""

    def __init__(self, path: Path, findings: Findings):
        self.objects: list[tuple[str, tuple[float, ...], bool, int, int]] = []
        self.filename, self.size_wh, self.broken, self.left_out = "", (0, 0), True, 0
        try:
            text = path.read_bytes()
            root = ElementTree.fromstring(text)
        except OSError as error:
            findings.error("corrupt annotation", path, f"cannot be read ({error.strerror}); check the file.")
            return
        except (ElementTree.ParseError, ValueError, LookupError) as error:  # the others: of the encoding it declares
            where = f"{path}:{error.position[0]}" if isinstance(error, ElementTree.ParseError) else path
            findings.error("corrupt annotation", where, f"not well-formed XML ({error}); correct or remove it.")
            return
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]  # {namespace}object
        if root.tag != "annotation":
            message = f"expected <annotation>, VOC's, got <{root.tag}>; export the data set as VOC, COCO or YOLO."
            findings.error("corrupt annotation", path, message)
            return
        self.filename = (root.findtext("filename") or "").strip()
        written = [(root.findtext(f"size/{side}") or "").strip() for side in ("width", "height")]
        width, height = map(pixels, written)
        if width is None or height is None:
            findings.error("bad size", path, f"expected width and height in whole pixels, got {written}; correct them.")
            return
        self.size_wh, self.broken = (width, height), False
        lines = [text.count(b"\n", 0, match.start()) + 1 for match in re.finditer(rb"<(?:\w+:)?object[\s>]", text)]
        for index, element in enumerate(root.findall("object")):
            where = lines[index] if index < len(lines) else 1
            read = self._object(element)
            if isinstance(read, str):
                findings.error("corrupt annotation", f"{path}:{where}", read)
                self.left_out += 1
            else:
                self.objects.append((*read, where, index + 1))

    @staticmethod
    def _object(element: ElementTree.Element) -> Any:
        """(name, corners, difficult), or what is wrong with them."""
        name = (element.findtext("name") or "").strip()
        values = [element.findtext(f"bndbox/{corner}") for corner in _CORNERS]
        try:
            corners = tuple(float(value) for value in values)
        except (TypeError, ValueError):
            got = dict(zip(_CORNERS, values, strict=True))
            return f"expected a bndbox with four numbers, got {got}; correct or remove the object."
        if not name:
            return "an object without a name; name its class or remove it."
        return name, corners, is_true(element.findtext("difficult"))


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
    annotations = _annotation_folder(root)
    if annotations is None:
        return with_train({split: _xml_files(folder) for split, folder in _split_folders(root).items()}), 0
    members: dict[str, list[Path]] = {}
    for listing in sorted((root / "ImageSets" / "Main").glob("*.txt")):
        lines = read_lines(listing, findings)
        entries = [(number, line.split()) for number, line in enumerate(lines, start=1) if line.strip()]
        if any(len(fields) > 1 and fields[-1] in ("1", "-1", "0") for _, fields in entries):
            continue  # name and 1 / -1 / 0: a class in or out, not a split
        split = split_name(listing.stem)
        if split in members:
            findings.error(
                "duplicate split", listing, f"a second list for split {split!r}; merge the two lists.", split
            )
            continue
        listed: dict[Path, int] = {}
        for number, fields in entries:
            name = " ".join(fields)
            path = annotations / f"{name[: name.rindex('.')] if name.lower().endswith(IMAGE_SUFFIXES) else name}.xml"
            if ".." in path.parts[len(annotations.parts) :] or annotations not in path.parents or not path.is_file():
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
    every = _xml_files(annotations)
    if not members:
        return {"train": every}, 0
    return with_train(members), len(set(every) - {path for paths in members.values() for path in paths})


def _xml_files(folder: Path) -> list[Path]:
    """The XML files below a folder, hidden ones aside."""
    return sorted(path for path in folder.rglob("*.xml") if path.is_file() and not path.name.startswith("."))


def _annotation_folder(root: Path) -> Path | None:
    """The folder of XML files beside that of the images; `root` itself where they are side by side."""
    for folder in (root / name for name in _ANNOTATION_FOLDERS):
        if any(folder.rglob("*.xml")):
            return folder
    return root if any(root.glob("*.xml")) else None


def _split_folders(root: Path) -> dict[str, Path]:
    """Split -> its folder of XML files, where each split has a folder of its own."""
    found = {split_name(folder.name): _annotation_folder(folder) for folder in visible_folders(root)}
    found = {split: folder for split, folder in found.items() if folder is not None}
    return {} if found.keys().isdisjoint(USUAL_SPLITS) else found  # else data sets of their own


def _home(path: Path) -> Path:
    """The folder of a data set or split in which an XML file is, in its folder of annotations or beside the images."""
    above = next((folder for folder in path.parents if folder.name in _ANNOTATION_FOLDERS), None)
    return path.parent if above is None else above.parent


def _image(finder: ImageFinder, path: Path, filename: str) -> Path:
    """The image of an XML file: of the same name, else the one it names itself; a path that is absent if none is."""
    home = _home(path)
    stem = path.relative_to(home).with_suffix("").as_posix()
    found = finder.like(stem) or (finder.find(filename) if filename else None)
    found = found or (finder.like(Path(filename).stem) if filename else None)
    return found or finder.expected(filename or f"{path.stem}.jpg")


def _report_unannotated(finders: dict[Path, ImageFinder], files: list[Path], findings: Findings) -> None:
    """Images that no XML file is about are not read; they are counted."""
    for home, finder in finders.items():
        folders = [folder for folder in finder.folders if folder.name in _IMAGE_FOLDERS and folder.parent == home]
        annotations = _annotation_folder(home)
        stems = {path.stem.casefold() for path in (*files, *(_xml_files(annotations) if annotations else ()))}
        images = ImageFinder(folders or [home], [home]).files()
        without = [path for path in images if path.stem.casefold() not in stems]
        if without:
            message = (
                f"{len(without)} of {len(images)} images have no XML file and are not read, such as {without[0].name}; "
                "add one, without objects where an image has none."
            )
            findings.warning("image without annotation", home, message)


def _running_sum(counts: Sequence[int]) -> list[int]:
    """How many come before each."""
    total, sums = 0, []
    for count in counts:
        sums.append(total)
        total += count
    return sums
