"""COCO JSON: annotations/instances_*.json with folders of images, or one JSON beside the images of each split."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .base import (
    USUAL_SPLITS,
    Findings,
    Format,
    RawDataset,
    check_class_names,
    chosen_splits,
    report_missing_images,
    split_name,
    with_train,
)
from .coco_content import read_categories, read_content, read_images, read_objects
from .images import ImageFinder, visible_folders

_ANNOTATION_FOLDERS = ("annotations", "Annotations", "labels")


def is_coco(root: Path) -> bool:
    """Whether `root` is a COCO JSON file, or a folder where COCO files are found."""
    return bool(annotation_files(root, _coco_files))


def read_coco(
    root: Path,
    findings: Findings,
    splits: Sequence[str] | None = None,
    masks: bool = True,
    image_dir: Path | None = None,
    bbox_format: str = "xywh",
) -> RawDataset:
    """Reads COCO detection annotations, masks among them; keypoints and captions are left aside. An object without
    `bbox` has the box around its mask.

    `root` is one JSON file (one split), a folder with annotations/instances_*.json (or annotations/*.json, or *.json),
    or a folder of folders, one a split, with one JSON each, beside the images (`_annotations.coco.json` of annotation
    services) or in a folder `annotations`. Images are looked for in the usual places (`image_dir` names another), and
    then by base name (`images.ImageFinder`). Categories are those of all files read together, which must agree (so
    read all splits of a training in one call), sorted by id; the ids are kept as `original_ids`. A category without
    objects that repeats the name of another, or is the supercategory that all others name, is left out. Image ids that
    are no whole numbers are numbered in the order of the file. `bbox_format`: one of `box_policy.BOX_FORMATS`.
    Raises ValueError (unless findings are collected) naming the file and the annotation.
    """
    if image_dir and not Path(image_dir).is_dir():
        raise ValueError(f"{root}: no such folder of images, {image_dir}; correct image_dir.")
    files = annotation_files(root, _coco_files)
    if not files:
        raise ValueError(f"{root}: no COCO annotation file; expected annotations/*.json or <split>/*.coco.json.")
    contents = {split: read_content(files[split]) for split in chosen_splits(files, splits, root)}
    return read_contents("coco", root, files, contents, findings, masks, image_dir, bbox_format)


def read_contents(
    format: str,
    root: Path,
    files: Mapping[str, Path],
    contents: Mapping[str, dict],
    findings: Findings,
    masks: bool,
    image_dir: Path | None,
    bbox_format: str = "xywh",
) -> RawDataset:
    """The data set of what the files of its splits hold; see `read_coco`."""
    categories = read_categories({files[split]: content for split, content in contents.items()}, findings)
    original_ids = sorted(categories)
    names = [categories[one] for one in original_ids]
    check_class_names(names, root, findings)
    class_ids = {original: index for index, original in enumerate(original_ids)}

    result = {}
    for split, content in contents.items():
        path = files[split]
        finder = ImageFinder([Path(image_dir)]) if image_dir else _finder(path, split, root)
        images = read_images(content["images"], finder, path, split, findings)
        read_objects(content, images, class_ids, names, path, split, bbox_format, findings, masks)
        finder.report(path, split, findings)
        result[split] = report_missing_images(list(images.values()), split, path, findings)
    return RawDataset(format, f"COCO JSON, {root}", names, original_ids, result, panoptic=format == "panoptic")


COCO = Format(
    "coco",
    "annotations/*.json or <split>/*.coco.json (COCO)",
    is_coco,
    read_coco,
    ("masks", "image_dir", "bbox_format"),
)


def annotation_files(root: Path, files_in: Callable[[Path], list[Path]]) -> dict[str, Path]:
    """Split -> its JSON file, from the layouts `read_coco` names; `files_in` says which files of a folder they are."""
    if root.is_file():
        return with_train({_split_of(root): root}) if root in files_in(root) else {}
    if not root.is_dir():
        return {}
    for folder in (*(root / name for name in _ANNOTATION_FOLDERS), root):
        if files := files_in(folder):
            return _by_split(files)
    below: dict[str, Path] = {}
    for folder in visible_folders(root):
        for place in (folder, *(folder / name for name in _ANNOTATION_FOLDERS)):
            files = files_in(place)
            if len(files) == 1:
                below.setdefault(split_name(folder.name), files[0])
    return {} if below.keys().isdisjoint(USUAL_SPLITS) else with_train(below)  # else data sets of their own


def _coco_files(folder: Path) -> list[Path]:
    """The COCO files in a folder, or the file itself: instances_*.json, or else what looks like it."""
    if folder.is_file():
        return [folder] if folder.suffix.lower() == ".json" and not looks_like_coco(folder, panoptic=True) else []
    files = json_files(folder)
    instances = [path for path in files if path.name.startswith("instances_")]
    return instances or [path for path in files if looks_like_coco(path) and not looks_like_coco(path, panoptic=True)]


def json_files(folder: Path) -> list[Path]:
    """The JSON files in a folder, sorted, without hidden ones."""
    return sorted(path for path in folder.glob("*.json") if path.is_file() and not path.name.startswith("."))


def _by_split(files: list[Path]) -> dict[str, Path]:
    by_split: dict[str, Path] = {}
    for path in files:
        split = _split_of(path)
        if split in by_split:  # train2014 and train2017: then the years stay
            return {_stem(path): path for path in files}
        by_split[split] = path
    return with_train(by_split)


def _stem(path: Path) -> str:
    stem = path.stem.removeprefix("instances_").removeprefix("panoptic_")
    # _annotations.coco.json, annotations.json: the folder says which split
    if stem in ("_annotations.coco", "_annotations", "annotations", "instances", "panoptic", "labels"):
        return "train" if path.parent.name in _ANNOTATION_FOLDERS else path.parent.name
    for word in ("annotations", "labels", "coco"):  # train_annotations.json beside train_images
        stem = stem.removeprefix(f"{word}_").removesuffix(f"_{word}")
    return stem


def _split_of(path: Path) -> str:
    stem = _stem(path)
    yearless = stem.rstrip("0123456789").rstrip("_-")
    return split_name(yearless if split_name(yearless) in USUAL_SPLITS else stem)


def looks_like_coco(path: Path, panoptic: bool = False) -> bool:
    """Whether the text names COCO's three lists (and a panoptic file's segments), without parsing what may be half a
    gigabyte."""
    with path.open("rb") as file:
        head = file.read(1 << 20)
        file.seek(max(len(head), path.stat().st_size - (1 << 20)))
        ends = head + file.read()
    ends = ends.replace(b"\0", b"")  # UTF-16
    if panoptic and b'"segments_info"' not in ends:
        return False
    return b'"categories"' in ends and (b'"images"' in ends or b'"annotations"' in ends)


def _finder(path: Path, split: str, root: Path) -> ImageFinder:
    """Looks where the images of a file may be, in the likeliest place first."""
    stem = _stem(path)
    names = (stem, f"{stem}_images", split, *(other for other in ("val", "valid") if split == "validation"))
    names = list(dict.fromkeys(names))
    root = root if root.is_dir() else root.parent
    home = path.parent.parent if path.parent.name in _ANNOTATION_FOLDERS else path.parent
    candidates = [path.parent]
    for base in dict.fromkeys((home, root)):
        for folder in (base, base / "images", base / "data", base / "JPEGImages"):
            candidates += [folder / name for name in names]
    for base in dict.fromkeys((home, root)):
        candidates += [base / "images", base / "data", base / "JPEGImages", base]
    return ImageFinder(candidates, shallow=(path.parent, home, root))
