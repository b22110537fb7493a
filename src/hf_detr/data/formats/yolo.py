"""YOLO folders: data.yaml, pictures under images/, one label file a picture under labels/, 'class cx cy w h' a line."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from ..box_policy import to_xywh_px
from .base import (
    IMAGE_SUFFIXES,
    Annotation,
    Findings,
    ImageRecord,
    RawDataset,
    check_class_names,
    chosen_splits,
    size_or_report,
    split_name,
)


def is_yolo(root: Path) -> bool:
    """Whether `root` is a YAML file of YOLO's, or a folder that holds one."""
    return _yaml_file(root) is not None


def read_yolo(root: Path, findings: Findings, splits: Sequence[str] | None = None) -> RawDataset:
    """Reads a YOLO data set by its YAML: `names` (list or dict), `train`, `val`, `test` (folder, list, .txt), `path`.

    Centres and sizes are fractions of the upright picture, whose size is read from its header. A picture without a
    label file, or with an empty one, has no object. Class ids of a dict of names are kept as `original_ids`. Images
    are numbered by their sorted paths. Raises ValueError (unless findings are collected) naming file and line;
    polygons and rotated boxes are such an error.
    """
    path = _yaml_file(root)
    if path is None:
        raise ValueError(f"{root}: no YAML file with names and train; YOLO data sets have a data.yaml.")
    content = _load(path)
    names_by_id = _names(content, path)
    original_ids = sorted(names_by_id)
    names = [names_by_id[one] for one in original_ids]
    class_ids = {original: index for index, original in enumerate(original_ids)}

    base = _base(content, path)
    entries = {split_name(key): content[key] for key in ("train", "val", "test") if content.get(key)}
    if not entries:
        raise ValueError(f"{path}: expected train, val or test, got {sorted(content)}; say where the pictures are.")
    chosen = chosen_splits(entries, splits, path)
    pictures = {split: _pictures(entry, base, path, split, findings) for split, entry in entries.items()}
    numbers = {
        picture: index for index, picture in enumerate(sorted({one for many in pictures.values() for one in many}))
    }

    result = {}
    for split in chosen:
        images, labelled, next_id = [], 0, 1
        for picture in pictures[split]:
            label_path = _label_path(picture)
            size = size_or_report(picture, path, split, findings)
            if size is None:
                continue
            record = ImageRecord(picture, numbers[picture], *size)
            if label_path.is_file():
                labelled += 1
                _read_labels(label_path, record, class_ids, names, next_id, split, findings)
                next_id += len(record.annotations)
            images.append(record)
        if images and not labelled:
            message = f"none of the {len(images)} pictures has a label file, looked for {_label_path(images[0].path)}; "
            findings.error("missing annotation", path, message + "put the .txt files there.", split)
        result[split] = images
        _report_orphans(pictures[split], split, findings)
    return RawDataset("yolo", f"YOLO, {path}", names, original_ids, result)


def _read_labels(
    label_path: Path,
    record: ImageRecord,
    class_ids: dict[int, int],
    names: list[str],
    first_id: int,
    split: str,
    findings: Findings,
) -> None:
    for number, line in enumerate(label_path.read_text().splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        where = f"{label_path}:{number}"
        if len(fields) != 5:
            hint = "correct the line."
            if len(fields) > 5:
                hint = "polygons and rotated boxes are not read; export the data set as detection boxes."
            message = f"expected 'class cx cy w h', got {len(fields)} fields; {hint}"
            findings.error("corrupt annotation", where, message, split)
            continue
        try:
            category, box = float(fields[0]), tuple(float(field) for field in fields[1:])
        except ValueError:
            message = f"expected five numbers 'class cx cy w h', got {line.strip()!r}; correct the line."
            findings.error("corrupt annotation", where, message, split)
            continue
        if category not in class_ids:
            known = dict(zip(class_ids, names, strict=True))
            message = f"unknown class {fields[0]}, the names are {known}; add its name to the YAML or correct the line."
            findings.error("unknown class", where, message, split)
            continue
        if max(box) > 2 and not record.width == record.height == 1:
            message = (
                f"expected centre and size as fractions of the picture, got {line.strip()!r}, which looks like pixels; "
                f"divide by width {record.width} and height {record.height}."
            )
            findings.error("pixels given as fractions", where, message, split)
            continue
        box_xywh_px = to_xywh_px(box, "cxcywh_fraction", record.width, record.height)
        record.annotations.append(
            Annotation(
                id=first_id + len(record.annotations),
                bbox_xywh_px=box_xywh_px,
                category=class_ids[int(category)],
                area=box_xywh_px[2] * box_xywh_px[3],
                iscrowd=0,
                where=where,
            )
        )


def _yaml_file(root: Path) -> Path | None:
    """The data set's YAML file: `root` itself, data.yaml, dataset.yaml, or the only one with names and train or val."""
    if root.is_file():
        return root if root.suffix in (".yaml", ".yml") else None
    if not root.is_dir():
        return None
    for name in ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml"):
        if (root / name).is_file():
            return root / name
    fitting = []
    for path in sorted((*root.glob("*.yaml"), *root.glob("*.yml"))):
        try:
            content = yaml.safe_load(path.read_text())
        except yaml.YAMLError:
            continue  # some other tool's file: this one is only being asked whether it is ours
        if isinstance(content, dict) and "names" in content and ("train" in content or "val" in content):
            fitting.append(path)
    return fitting[0] if len(fitting) == 1 else None


def _load(path: Path) -> dict:
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML ({error}); correct it.") from error
    if not isinstance(content, dict) or "names" not in content:
        raise ValueError(f"{path}: expected names, train and val, got {content!r:.200}; add the class names.")
    return content


def _names(content: dict, path: Path) -> dict[int, str]:
    names = content["names"]
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(isinstance(key, int) for key in names):
        raise ValueError(f"{path}: expected names as a list, or a dict of numbers to names, got {names!r:.200}.")
    names = {key: str(name) for key, name in names.items()}
    check_class_names(list(names.values()), path)
    if content.get("nc", len(names)) != len(names):
        raise ValueError(f"{path}: nc is {content['nc']} but there are {len(names)} names; correct one of them.")
    return names


def _base(content: dict, path: Path) -> Path:
    """What relative paths start from: `path` of the YAML where that exists, else the YAML's own folder."""
    given = content.get("path")
    for folder in (path.parent / given, Path(given)) if given else ():
        if folder.is_dir():
            return folder
    return path.parent


def _pictures(entry: str | list, base: Path, path: Path, split: str, findings: Findings) -> list[Path]:
    found: dict[Path, None] = {}
    for one in [entry] if isinstance(entry, str) else entry:
        place = base / one
        if not place.exists() and one.startswith("../"):
            place = base / one.removeprefix("../")  # annotation services write ../train/images for train/images
        if place.is_dir():
            found |= dict.fromkeys(sorted(file for file in place.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES))
        elif place.is_file() and place.suffix == ".txt":
            for number, line in enumerate(place.read_text().splitlines(), start=1):
                if not line.strip():
                    continue
                # ./images/a.jpg is relative to the list, images/a.jpg to the data set, as YOLO's tools have it
                picture = (place.parent if line.startswith("./") else base) / line.strip()
                if picture in found:
                    message = f"{line.strip()!r} a second time; remove the line."
                    findings.error("duplicate id", f"{place}:{number}", message, split)
                found[picture] = None
        else:
            message = f"{split}: no such folder or .txt list {place}; correct the entry, or `path`."
            findings.error("missing image", path, message, split)
    return list(found)


def _label_path(picture: Path) -> Path:
    """images/ -> labels/ (the last in the path), the suffix -> .txt; beside the picture where there is no images/."""
    parts = list(picture.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _report_orphans(pictures: Sequence[Path], split: str, findings: Findings) -> None:
    """Label files whose picture is gone are objects nobody would see; they are counted."""
    expected = {_label_path(picture) for picture in pictures}
    for folder in sorted({path.parent for path in expected if "labels" in path.parts}):
        orphans = sorted(path for path in folder.glob("*.txt") if path not in expected and path.name != "classes.txt")
        # a flat labels/ folder may serve several splits that are lists: then others' label files are no orphans
        orphans = [path for path in orphans if not _has_picture(path)]
        if orphans:
            message = f"{len(orphans)} label files have no picture, e.g. {orphans[0].name}; restore or remove them."
            findings.warning("missing image", folder, message, split)


def _has_picture(label_path: Path) -> bool:
    parts = list(label_path.parts)
    index = len(parts) - 1 - parts[::-1].index("labels")
    parts[index] = "images"
    return any(Path(*parts).with_suffix(suffix).is_file() for suffix in IMAGE_SUFFIXES)
