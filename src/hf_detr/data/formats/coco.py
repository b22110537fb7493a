"""COCO JSON: annotations/instances_*.json with folders of pictures, or one JSON beside the pictures of each split."""

import json
from collections.abc import Sequence
from pathlib import Path

from ..box_policy import to_xywh_px
from .base import (
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

_USUAL_SPLITS = ("train", "validation", "test")


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
    or a folder of folders with one JSON beside the pictures, `_annotations.coco.json` as annotation services export
    it. Pictures are looked for in the usual places (`image_dir` names another). Categories are those of all files read
    together, which must agree (so read all splits of a training in one call), sorted by id; the ids are kept as
    `original_ids`. `bbox_format`: see `bad_boxes.py`.
    Raises ValueError (unless findings are collected) naming the file and the annotation.
    """
    files = _annotation_files(root)
    if not files:
        raise ValueError(f"{root}: no COCO annotation file; expected annotations/*.json or <split>/*.coco.json.")
    contents = {split: _load(files[split]) for split in chosen_splits(files, splits, root)}
    categories = _categories({files[split]: content for split, content in contents.items()}, findings)
    original_ids = sorted(categories)
    names = [categories[one] for one in original_ids]
    check_class_names(names, root)
    class_ids = {original: index for index, original in enumerate(original_ids)}

    result = {}
    for split, content in contents.items():
        path = files[split]
        folder = image_dir or _image_folder(path, split, content["images"], root if root.is_dir() else root.parent)
        images = _images(content["images"], folder, path, split, findings)
        _annotations(content["annotations"], images, class_ids, names, path, split, bbox_format, findings)
        result[split] = list(images.values())
        report_missing_images(result[split], split, path, findings)
    return RawDataset("coco", f"COCO JSON, {root}", names, original_ids, result)


def _images(entries: list, folder: Path, path: Path, split: str, findings: Findings) -> dict[int, ImageRecord]:
    images: dict[int, ImageRecord] = {}
    for index, entry in enumerate(entries):
        where = f"{path}: images[{index}]"
        image_id, file_name = entry.get("id"), entry.get("file_name")
        try:
            image_id = int(image_id)
        except (TypeError, ValueError):
            findings.error("bad id", where, f"expected a whole number as id, got {image_id!r}; renumber images.", split)
            continue
        if not isinstance(file_name, str) or not file_name:
            findings.error("missing image", where, f"expected file_name, got {file_name!r}; name the picture.", split)
            continue
        if image_id in images:
            other = images[image_id].path.name
            message = f"image id {image_id} of {file_name!r} is that of {other!r} already; give every image its own."
            findings.error("duplicate id", where, message, split)
            continue
        picture = folder / file_name
        width, height = entry.get("width") or 0, entry.get("height") or 0
        if not (width > 0 and height > 0):
            size = size_or_report(picture, where, split, findings)
            if size is None:
                continue
            width, height = size
        images[image_id] = ImageRecord(picture, image_id, int(width), int(height))
    return images


def _annotations(
    entries: list,
    images: dict[int, ImageRecord],
    class_ids: dict[int, int],
    names: list[str],
    path: Path,
    split: str,
    bbox_format: str,
    findings: Findings,
) -> None:
    """Appends the annotations to their images."""
    seen: set[int] = set()
    for index, entry in enumerate(entries):
        number = entry.get("id", index + 1)  # some writers leave ids out
        where = f"{path}: annotation {number} (annotations[{index}])"
        image = images.get(entry.get("image_id"))
        if image is None:
            message = (
                f"image_id {entry.get('image_id')!r} is none of the images; add the image or remove the annotation."
            )
            findings.error("unknown image", where, message, split)
            continue
        where = f"{where} of {image.path.name}"
        if not isinstance(number, int) or number in seen:
            message = f"expected a whole number of its own as id, got {number!r}; renumber the annotations."
            findings.error("duplicate id" if number in seen else "bad id", where, message, split)
            continue
        seen.add(number)
        if entry.get("category_id") not in class_ids:
            message = (
                f"unknown category_id {entry.get('category_id')!r}, the categories are "
                f"{dict(zip(class_ids, names, strict=True))}; add the category or correct the annotation."
            )
            findings.error("unknown class", where, message, split)
            continue
        box = entry.get("bbox")
        try:
            box = to_xywh_px(box, bbox_format, image.width, image.height)
        except (TypeError, ValueError):
            message = f"expected bbox as four numbers, got {box!r}; add it or remove the annotation."
            findings.error("corrupt annotation", where, message, split)
            continue
        area = entry.get("area")
        image.annotations.append(
            Annotation(
                id=number,
                bbox_xywh_px=box,
                category=class_ids[entry["category_id"]],
                area=box[2] * box[3] if area is None else float(area),
                iscrowd=int(bool(entry.get("iscrowd", 0))),
                where=where,
            )
        )


def _load(path: Path) -> dict:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # JSONDecodeError gives line and column, UnicodeDecodeError the byte
        raise ValueError(f"{path}: not valid JSON ({error}); export it again.") from error
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
    origin: dict[int, Path] = {}
    for path, content in contents.items():
        for index, entry in enumerate(content["categories"]):
            number, name = entry.get("id"), str(entry.get("name", ""))
            if not isinstance(number, int):
                message = f"expected a whole number as category id, got {number!r}; renumber the categories."
                findings.error("bad id", f"{path}: categories[{index}]", message)
                continue
            if categories.setdefault(number, name) != name:
                message = (
                    f"category {number} is {name!r} here and {categories[number]!r} in {origin[number]}; "
                    "one id must have one name in every file."
                )
                findings.error("unknown class", f"{path}: categories[{index}]", message)
            origin.setdefault(number, path)
    return categories


def _annotation_files(root: Path) -> dict[str, Path]:
    """Split -> its JSON file, from the layouts `read_coco` names."""
    if root.is_file():
        return {_split_of(root): root} if root.suffix == ".json" else {}
    if not root.is_dir():
        return {}
    for folder in (root / "annotations", root):
        files = sorted(folder.glob("instances_*.json")) or sorted(
            path for path in folder.glob("*.json") if _looks_like_coco(path)
        )
        if files:
            return _by_split(files)
    below = [
        sorted(path for path in folder.glob("*.json") if _looks_like_coco(path)) for folder in sorted(root.iterdir())
    ]
    return _by_split([files[0] for files in below if len(files) == 1])


def _by_split(files: list[Path]) -> dict[str, Path]:
    by_split: dict[str, Path] = {}
    for path in files:
        split = _split_of(path)
        if split in by_split:  # train2014 and train2017: then the years stay
            return {_stem(path): path for path in files}
        by_split[split] = path
    order = [split for split in _USUAL_SPLITS if split in by_split]
    return {split: by_split[split] for split in [*order, *(one for one in by_split if one not in order)]}


def _stem(path: Path) -> str:
    stem = path.stem.removeprefix("instances_")
    # _annotations.coco.json, annotations.json: the folder says which split
    if stem in ("_annotations.coco", "_annotations", "annotations", "instances", "labels"):
        stem = "train" if path.parent.name == "annotations" else path.parent.name
    return stem


def _split_of(path: Path) -> str:
    stem = _stem(path)
    yearless = stem.rstrip("0123456789").rstrip("_-")
    return split_name(yearless if split_name(yearless) in _USUAL_SPLITS else stem)


def _looks_like_coco(path: Path) -> bool:
    """Whether the text names COCO's three lists, without parsing what may be half a gigabyte."""
    with path.open("rb") as file:
        head = file.read(1 << 20)
        file.seek(max(len(head), path.stat().st_size - (1 << 20)))
        ends = head + file.read()
    return b'"categories"' in ends and (b'"images"' in ends or b'"annotations"' in ends)


def _image_folder(path: Path, split: str, entries: list, root: Path) -> Path:
    """The first of the usual folders that holds the first picture; the first that exists, where none does."""
    stem = _stem(path)
    names = list(dict.fromkeys((stem, split, *(other for other in ("val", "valid") if split == "validation"))))
    candidates = [path.parent]
    for base in (root, root / "images", root / "data"):
        candidates += [base / name for name in names] + [base]
    candidates += [root.parent / "images", root.parent / stem]
    first = next((entry["file_name"] for entry in entries if isinstance(entry.get("file_name"), str)), None)
    if first is not None:
        for folder in candidates:
            if (folder / first).is_file():
                return folder
    return next(folder for folder in [*candidates[1:], root] if folder.is_dir())
