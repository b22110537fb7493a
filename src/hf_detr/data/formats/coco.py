"""COCO JSON: annotations/instances_*.json with folders of images, or one JSON beside the images of each split."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..box_policy import to_xywh_px
from .base import (
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
from .files import is_bad_area, is_true, pixels, read_json, whole_number
from .images import ImageFinder, visible_folders

_ANNOTATION_FOLDERS = ("annotations", "Annotations", "labels")


def is_coco(root: Path) -> bool:
    """Whether `root` is a COCO JSON file, or a folder where COCO files are found."""
    return bool(_annotation_files(root))


def read_coco(
    root: Path,
    findings: Findings,
    splits: Sequence[str] | None = None,
    image_dir: Path | None = None,
    bbox_format: str = "xywh",
) -> RawDataset:
    """Reads COCO detection annotations; masks, keypoints and captions are left aside.

    `root` is one JSON file (one split), a folder with annotations/instances_*.json (or annotations/*.json, or *.json),
    or a folder of folders, one a split, with one JSON each, beside the images (`_annotations.coco.json` of annotation
    services) or in a folder `annotations`. Images are looked for in the usual places (`image_dir` names another), and
    then by base name (`images.ImageFinder`). Categories are those of all files read together, which must agree (so
    read all splits of a training in one call), sorted by id; the ids are kept as `original_ids`. A category without
    objects that repeats the name of another, or is the supercategory that all others name, is left out. Image ids that
    are no whole numbers are numbered in the order of the file. `bbox_format`: one of `box_policy.BOX_FORMATS`.
    Raises ValueError (unless findings are collected) naming the file and the annotation.
    """
    files = _annotation_files(root)
    if not files:
        raise ValueError(f"{root}: no COCO annotation file; expected annotations/*.json or <split>/*.coco.json.")
    contents = {split: _load(files[split]) for split in chosen_splits(files, splits, root)}
    categories = _categories({files[split]: content for split, content in contents.items()}, findings)
    original_ids = sorted(categories)
    names = [categories[one] for one in original_ids]
    check_class_names(names, root, findings)
    class_ids = {original: index for index, original in enumerate(original_ids)}

    result = {}
    for split, content in contents.items():
        path = files[split]
        finder = ImageFinder([Path(image_dir)]) if image_dir else _finder(path, split, root)
        images = _images(content["images"], finder, path, split, findings)
        _annotations(content["annotations"], images, class_ids, names, path, split, bbox_format, findings)
        finder.report(path, split, findings)
        result[split] = report_missing_images(list(images.values()), split, path, findings)
    return RawDataset("coco", f"COCO JSON, {root}", names, original_ids, result)


COCO = Format(
    "coco", "annotations/*.json or <split>/*.coco.json (COCO)", is_coco, read_coco, ("image_dir", "bbox_format")
)


def _images(entries: list, finder: ImageFinder, path: Path, split: str, findings: Findings) -> dict[str, ImageRecord]:
    """The images by their ids as text."""
    images: dict[str, ImageRecord] = {}
    ids = [entry.get("id") for entry in entries if isinstance(entry, Mapping)]
    some_numbers = any(isinstance(one, int) for one in ids)
    numbered = some_numbers or all(whole_number(one) is not None for one in ids)
    for index, entry in enumerate(entries):
        where = f"{path}: images[{index}]"
        if not _is_entry(entry, where, split, findings):
            continue
        key, file_name = _id_key(entry.get("id")), entry.get("file_name")
        if key is None or (some_numbers and whole_number(key) is None):
            wanted = "a whole number of 64 bits" + (", as others have" if some_numbers else " or a text")
            message = f"expected {wanted}, as id, got {_short(entry.get('id'))}; renumber the images."
            findings.error("bad id", where, message, split)
            continue
        if not isinstance(file_name, str) or not file_name:
            message = f"expected file_name, got {_short(file_name)}; name the image."
            findings.error("missing image", where, message, split)
            continue
        if key in images:
            other = images[key].path.name
            message = f"image id {key} of {file_name!r} is that of {other!r} already; give every image its own."
            findings.error("duplicate id", where, message, split)
            continue
        width, height = pixels(entry.get("width")), pixels(entry.get("height"))
        if width is None or height is None:
            message = (
                f"expected width and height in whole pixels, got {_short(entry.get('width'))} and "
                f"{_short(entry.get('height'))}; correct or remove them."
            )
            findings.error("bad size", where, message, split)
            continue
        image = finder.find(file_name) or finder.expected(file_name)
        if not (width and height):
            size = size_or_report(image, where, split, findings)
            if size is None:
                continue
            width, height = size
        images[key] = ImageRecord(image, int(key) if numbered else index + 1, width, height)
    return images


def _annotations(
    entries: list,
    images: dict[str, ImageRecord],
    class_ids: dict[int, int],
    names: list[str],
    path: Path,
    split: str,
    bbox_format: str,
    findings: Findings,
) -> None:
    """Appends the annotations to their images."""
    # some writers leave ids out, others write text: then all are numbered
    renumbered = any(isinstance(entry, Mapping) and isinstance(entry.get("id"), str | None) for entry in entries)
    seen: set[int] = set()
    for index, entry in enumerate(entries):
        where = f"{path}: annotations[{index}]"
        if not _is_entry(entry, where, split, findings):
            continue
        number = index + 1 if renumbered else whole_number(entry.get("id"))
        where = f"{path}: annotation {_short(entry.get('id', number))} (annotations[{index}])"
        image = images.get(_id_key(entry.get("image_id")) or "")
        if image is None:
            message = (
                f"image_id {_short(entry.get('image_id'))} is none of the images; add the image or remove the "
                "annotation."
            )
            findings.error("unknown image", where, message, split)
            continue
        where = f"{where} of {image.path.name}"
        image.left_out += 1
        if number is None or number in seen:
            message = f"expected a whole number of its own as id, got {_short(entry.get('id'))}; renumber them."
            findings.error("bad id" if number is None else "duplicate id", where, message, split)
            continue
        seen.add(number)
        category = class_ids.get(whole_number(entry.get("category_id")))
        if category is None:
            message = (
                f"unknown category_id {_short(entry.get('category_id'))}, the categories are "
                f"{_short(dict(zip(class_ids, names, strict=True)))}; add the category or correct the annotation."
            )
            findings.error("unknown class", where, message, split)
            continue
        box = _numbers(entry.get("bbox"), 4)
        if box is None:
            message = (
                f"expected bbox as four numbers, got {_short(entry.get('bbox'))}; add it or remove the annotation."
            )
            findings.error("corrupt annotation", where, message, split)
            continue
        box = to_xywh_px(box, bbox_format, image.width, image.height)
        area = _numbers([box[2] * box[3] if entry.get("area") is None else entry["area"]], 1)
        if area is None or is_bad_area(area[0], box):
            message = f"expected area in square pixels, got {_short(entry.get('area'))}; correct it, or leave it out."
            findings.error("bad area", where, message, split)
            continue
        image.left_out -= 1
        image.annotations.append(
            Annotation(number, box, category, area[0], int(is_true(entry.get("iscrowd", 0))), where)
        )


def _id_key(value: Any) -> str | None:
    """An image id as text, whether it was written as a number or as text; None for what is neither."""
    number = whole_number(value)
    if number is not None:
        return str(number)
    return value if isinstance(value, str) and value else None


def _is_entry(entry: Any, where: str, split: str | None, findings: Findings) -> bool:
    if isinstance(entry, Mapping):
        return True
    findings.error(
        "corrupt annotation", where, f"expected an object {{...}}, got {_short(entry)}; export again.", split
    )
    return False


def _numbers(values: Any, count: int) -> tuple[float, ...] | None:
    if not isinstance(values, list) or len(values) != count or any(isinstance(value, bool) for value in values):
        return None
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError, OverflowError):
        return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _load(path: Path) -> dict:
    content = read_json(path)
    missing = [key for key in ("images", "categories") if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(f"{path}: expected COCO's images, annotations and categories, {missing} missing.")
    content.setdefault("annotations", [])  # files of test images have none
    wrong = [key for key in ("images", "annotations", "categories") if not isinstance(content[key], list)]
    if wrong:
        raise ValueError(f"{path}: expected lists under images, annotations and categories, {wrong} differ.")
    return content


def _categories(contents: dict[Path, dict], findings: Findings) -> dict[int, str]:
    """Original id -> name over all files; the same id must mean the same everywhere."""
    categories: dict[int, str] = {}
    above: dict[int, Any] = {}  # id -> supercategory
    origin: dict[int, Path] = {}
    for path, content in contents.items():
        for index, entry in enumerate(content["categories"]):
            where = f"{path}: categories[{index}]"
            if not _is_entry(entry, where, None, findings):
                continue
            number, name = whole_number(entry.get("id")), entry.get("name")
            if number is None:
                message = f"expected a whole number as category id, got {_short(entry.get('id'))}; renumber them."
                findings.error("bad id", where, message)
                continue
            if isinstance(name, list | dict | None) or not str(name):
                findings.error("bad class name", where, f"expected a name, got {_short(name)}; name the category.")
                continue
            name = str(name)
            if categories.setdefault(number, name) != name:
                message = (
                    f"category {number} is {name!r} here and {categories[number]!r} in {origin[number]}; "
                    "one id must have one name in every file."
                )
                findings.error("unknown class", where, message)
            origin.setdefault(number, path)
            above[number] = entry.get("supercategory")
    used = {
        whole_number(entry.get("category_id"))
        for content in contents.values()
        for entry in content["annotations"]
        if isinstance(entry, Mapping)
    }
    counts = Counter(categories.values())
    for number in sorted(set(categories) - used):
        name = categories[number]
        others = {one: parent for one, parent in above.items() if one != number}
        # annotation services put the project itself first, as a category 0 that no object has
        is_project = number == 0 and others and all(parent == name for parent in others.values())
        if counts[name] > 1 or (is_project and used):
            counts[name] -= 1
            del categories[number], above[number]
    return categories


def _annotation_files(root: Path) -> dict[str, Path]:
    """Split -> its JSON file, from the layouts `read_coco` names."""
    if root.is_file():
        return with_train({_split_of(root): root}) if root.suffix.lower() == ".json" else {}
    if not root.is_dir():
        return {}
    for folder in (*(root / name for name in _ANNOTATION_FOLDERS), root):
        if files := _coco_files(folder):
            return _by_split(files)
    below: dict[str, Path] = {}
    for folder in visible_folders(root):
        for place in (folder, *(folder / name for name in _ANNOTATION_FOLDERS)):
            files = _coco_files(place)
            if len(files) == 1:
                below.setdefault(split_name(folder.name), files[0])
    return {} if below.keys().isdisjoint(USUAL_SPLITS) else with_train(below)  # else data sets of their own


def _coco_files(folder: Path) -> list[Path]:
    """The COCO files in a folder: instances_*.json, or else what looks like it."""
    files = sorted(path for path in folder.glob("*.json") if path.is_file() and not path.name.startswith("."))
    instances = [path for path in files if path.name.startswith("instances_")]
    return instances or [path for path in files if _looks_like_coco(path)]


def _by_split(files: list[Path]) -> dict[str, Path]:
    by_split: dict[str, Path] = {}
    for path in files:
        split = _split_of(path)
        if split in by_split:  # train2014 and train2017: then the years stay
            return {_stem(path): path for path in files}
        by_split[split] = path
    return with_train(by_split)


def _stem(path: Path) -> str:
    stem = path.stem.removeprefix("instances_")
    # _annotations.coco.json, annotations.json: the folder says which split
    if stem in ("_annotations.coco", "_annotations", "annotations", "instances", "labels"):
        stem = "train" if path.parent.name in _ANNOTATION_FOLDERS else path.parent.name
    return stem


def _split_of(path: Path) -> str:
    stem = _stem(path)
    yearless = stem.rstrip("0123456789").rstrip("_-")
    return split_name(yearless if split_name(yearless) in USUAL_SPLITS else stem)


def _looks_like_coco(path: Path) -> bool:
    """Whether the text names COCO's three lists, without parsing what may be half a gigabyte."""
    with path.open("rb") as file:
        head = file.read(1 << 20)
        file.seek(max(len(head), path.stat().st_size - (1 << 20)))
        ends = head + file.read()
    ends = ends.replace(b"\0", b"")  # UTF-16
    return b'"categories"' in ends and (b'"images"' in ends or b'"annotations"' in ends)


def _finder(path: Path, split: str, root: Path) -> ImageFinder:
    """Looks where the images of a file may be, in the likeliest place first."""
    stem = _stem(path)
    names = list(dict.fromkeys((stem, split, *(other for other in ("val", "valid") if split == "validation"))))
    root = root if root.is_dir() else root.parent
    home = path.parent.parent if path.parent.name in _ANNOTATION_FOLDERS else path.parent
    candidates = [path.parent]
    for base in dict.fromkeys((home, root)):
        for folder in (base, base / "images", base / "data", base / "JPEGImages"):
            candidates += [folder / name for name in names]
    for base in dict.fromkeys((home, root)):
        candidates += [base / "images", base / "data", base / "JPEGImages", base]
    return ImageFinder(candidates, shallow=(path.parent, home, root))
