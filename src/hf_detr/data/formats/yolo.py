"""YOLO folders: images, one label file an image, 'class cx cy w h' or a polygon a line; data.yaml says what is where.

Without a YAML file, a file of class names does (classes.txt of Label Studio and LabelImg, obj.names of CVAT's older
export, _darknet.labels of Roboflow's), and the usual folders are looked for.
"""

from collections.abc import Sequence
from itertools import product
from math import isfinite
from pathlib import Path
from typing import Any

from ..box_policy import to_xywh_px
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
from .files import read_lines, read_text, read_yaml, whole_number
from .images import image_files, visible_folders

_YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels")
_SPLIT_KEYS = ("train", "training", "val", "valid", "validation", "test")
_FOLDERS_WITHOUT_YAML = ("images/{}", "{}/images", "obj_{}_data", "{}")
_FOLDER_NAMES = ("train", "valid", "val", "validation", "test", "Train", "Validation", "Test")


def is_yolo(root: Path) -> bool:
    """Whether `root` is a YAML file of YOLO's, or a folder that holds one, or class names and label files."""
    return _yaml_file(root) is not None or _names_file(root) is not None


def read_yolo(root: Path, findings: Findings, splits: Sequence[str] | None = None, masks: bool = True) -> RawDataset:
    """Reads a YOLO data set by its YAML: `names` (list or dict), `train`, `val`, `test` (folder, list, .txt), `path`.

    Centres and sizes are fractions of the upright image, whose size is read from its header. A polygon (three points
    or more) is a mask, with the box around it and its own area; with `kpt_shape` in the YAML, keypoints after the box
    are left aside. An image without a label file, or with an empty one, has no object. Class ids of a dict of names are
    kept as `original_ids`. Images are numbered by their sorted paths. Beside train, splits without images (Roboflow's
    YAML names folders that its export leaves out) are left out with a warning. Raises ValueError (unless findings are
    collected) naming file and line.
    """
    path = _yaml_file(root) or _names_file(root)
    if path is None:
        raise ValueError(f"{root}: no YAML file with names and train, and no classes.txt beside labels.")
    if path.suffix in (".yaml", ".yml"):
        content = _load(path)
        names_by_id, base = _names(content, path), _base(content, path)
        entries = _entries(content)
    else:
        content = {}
        names_by_id = dict(enumerate(line.strip() for line in read_text(path).splitlines() if line.strip()))
        base = root
        entries = _entries_without_yaml(root)
    original_ids = sorted(names_by_id)
    names = [names_by_id[one] for one in original_ids]
    check_class_names(names, path, findings)
    class_ids = {original: index for index, original in enumerate(original_ids)}
    if not entries:
        raise ValueError(
            f"{path}: expected train, val or test, got {sorted(content)!r:.200}; say where the images are."
        )
    images_of = {split: _images(entry, base, path, split, findings, entries) for split, entry in entries.items()}
    images_of = with_train(
        {split: images for split, images in images_of.items() if images or _is_needed(split, entries)}
    )
    numbers = {image: index for index, image in enumerate(sorted({one for many in images_of.values() for one in many}))}
    keypoints = _keypoints(content, path)

    result = {}
    for split in chosen_splits(images_of, splits, path):
        images, labelled, next_id = [], 0, 1
        for image in images_of[split]:
            label_path = _label_path(image)
            size = size_or_report(image, path, split, findings)
            if size is None:
                continue
            record = ImageRecord(image, numbers[image], *size)
            if label_path.is_file():
                labelled += 1
                _read_labels(label_path, record, class_ids, names, next_id, split, findings, keypoints, masks)
                next_id += len(record.annotations)
            images.append(record)
        if images and not labelled:
            message = f"none of the {len(images)} images has a label file, looked for {_label_path(images[0].path)}; "
            findings.error("missing annotation", path, message + "put the .txt files there.", split)
        result[split] = images
        _report_orphans(images_of, split, findings)
    return RawDataset("yolo", f"YOLO, {path}", names, original_ids, result)


YOLO = Format("yolo", "data.yaml, or classes.txt beside images and labels (YOLO)", is_yolo, read_yolo, ("masks",))


def _read_labels(
    label_path: Path,
    record: ImageRecord,
    class_ids: dict[int, int],
    names: list[str],
    first_id: int,
    split: str,
    findings: Findings,
    keypoints: int,
    masks: bool,
) -> None:
    for number, line in enumerate(read_lines(label_path, findings, split), start=1):
        fields = line.split()
        if not fields:
            continue
        where = f"{label_path}:{number}"
        record.left_out += 1
        is_polygon = not keypoints and len(fields) >= 7 and len(fields) % 2 == 1
        if not (len(fields) == 5 + keypoints or len(fields) == 5 or is_polygon):
            hint = "or a polygon 'class x y x y ...'; " if len(fields) > 6 else ""
            hint = "the sixth may be a score; " if len(fields) == 6 else hint
            message = f"expected 'class cx cy w h', got {len(fields)} fields; {hint}correct the line."
            findings.error("corrupt annotation", where, message, split)
            continue
        try:
            category, values = float(fields[0]), [float(field) for field in fields[1:]]
        except ValueError:
            message = f"expected five numbers 'class cx cy w h' or a polygon, got {line.strip()[:99]!r}; correct it."
            findings.error("corrupt annotation", where, message, split)
            continue
        if category not in class_ids:
            known = dict(zip(class_ids, names, strict=True))
            message = (
                f"unknown class {fields[0]}, the names are {known!r:.300}; add its name to them, or correct the line."
            )
            findings.error("unknown class", where, message, split)
            continue
        values = values if is_polygon else values[:4]
        if max(values) > 2 and not record.width == record.height == 1:
            message = (
                f"expected centre and size as fractions of the image, got {line.strip()[:100]!r}, which looks like "
                f"pixels; divide by width {record.width} and height {record.height}."
            )
            findings.error("pixels given as fractions", where, message, split)
            continue
        width, height, segmentation = record.width, record.height, None
        if is_polygon:
            if masks:
                polygon = [value * (height if k % 2 else width) for k, value in enumerate(values)]
                segmentation = findings.masked([polygon], where, split)
            box, area = _around(values), _area(values) * width * height
            box_xywh_px = to_xywh_px(box, "xyxy_fraction", width, height)
        else:
            box_xywh_px = to_xywh_px(tuple(values), "cxcywh_fraction", width, height)
            area = box_xywh_px[2] * box_xywh_px[3]
        record.left_out -= 1
        number = first_id + len(record.annotations)
        record.annotations.append(
            Annotation(number, box_xywh_px, class_ids[int(category)], area, 0, where, segmentation)
        )


def _around(polygon: list[float]) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of x, y, x, y, ...; NaN where one of them is no number."""
    x, y = polygon[::2], polygon[1::2]
    finite = all(map(isfinite, polygon))
    return (min(x), min(y), max(x), max(y)) if finite else (float("nan"),) * 4


def _area(polygon: list[float]) -> float:
    """Shoelace formula."""
    x, y = polygon[::2], polygon[1::2]
    return abs(sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x)))) / 2


def _yaml_file(root: Path) -> Path | None:
    """The data set's YAML file: `root` itself, data.yaml, dataset.yaml, or the only one with names and train or val."""
    if root.is_file():
        return root if root.suffix in (".yaml", ".yml") else None
    if not root.is_dir():
        return None
    for name in _YAML_FILES:
        if (root / name).is_file():
            return root / name
    fitting = []
    for path in sorted((*root.glob("*.yaml"), *root.glob("*.yml"))):
        try:
            content = read_yaml(path)
        except (ValueError, OSError):
            continue  # some other tool's file: this one is only being asked whether it is ours
        if isinstance(content, dict) and "names" in content and _entries(content):
            fitting.append(path)
    return fitting[0] if len(fitting) == 1 else None


def _names_file(root: Path) -> Path | None:
    """A file of class names, where there are images to it: in `root`, its labels, or one of its splits."""
    if not root.is_dir() or not _entries_without_yaml(root):
        return None
    folders = (root, root / "labels", *visible_folders(root))
    return next((folder / name for folder, name in product(folders, _NAME_FILES) if (folder / name).is_file()), None)


def _entries_without_yaml(root: Path) -> dict[str, str]:
    """Split -> its list or folder of images, where label files are beside the images or in labels/."""
    entries: dict[str, str] = {}
    for name in _FOLDER_NAMES:
        if (root / f"{name}.txt").is_file():
            entries.setdefault(split_name(name), f"{name}.txt")
    for template, name in product(_FOLDERS_WITHOUT_YAML, _FOLDER_NAMES):
        folder = root / template.format(name)
        if any(folder.glob("*.txt")) or (
            folder.is_dir() and _label_path(folder / "x").parent.is_dir() and "images" in template
        ):
            entries.setdefault(split_name(name), template.format(name))
    if not entries and (root / "images").is_dir() and (root / "labels").is_dir():
        entries["train"] = "images"
    if not entries and any(image.with_suffix(".txt").is_file() for image in image_files(root, deep=False)):
        entries["train"] = str(root.absolute())  # LabelImg: all side by side
    return entries


def _entries(content: dict) -> dict[str, Any]:
    """Split -> what the YAML says of its images; CVAT writes the names of its subsets ("Train", "Validation")."""
    given = {str(key).lower(): entry for key, entry in content.items() if entry not in (None, "", "null", "~")}
    return {split_name(key): given[key] for key in _SPLIT_KEYS if key in given}


def _is_needed(split: str, entries: dict[str, Any]) -> bool:
    """Whether there is nothing to train on without this split."""
    return split == "train" or "train" not in entries


def _load(path: Path) -> dict:
    content = read_yaml(path)
    if not isinstance(content, dict) or "names" not in content:
        raise ValueError(f"{path}: expected names, train and val, got {content!r:.200}; add the class names.")
    return content


def _names(content: dict, path: Path) -> dict[int, str]:
    names = content["names"]
    if isinstance(names, list):
        names = dict(enumerate(names))
    numbers = {whole_number(key): name for key, name in names.items()} if isinstance(names, dict) else {None: ""}
    if None in numbers or not all(isinstance(name, str) for name in numbers.values()) or len(numbers) != len(names):
        raise ValueError(f"{path}: expected names as a list, or a dict of numbers to names, got {names!r:.200}.")
    count = content.get("nc", len(numbers))
    if numbers and whole_number(count) != len(numbers):
        raise ValueError(f"{path}: nc is {count!s:.50} but there are {len(numbers)} names; correct one of them.")
    return numbers


def _keypoints(content: dict, path: Path) -> int:
    """How many numbers of keypoints follow the box in a line."""
    shape = content.get("kpt_shape")
    if shape in (None, "", "null"):
        return 0
    numbers = [whole_number(one) for one in shape] if isinstance(shape, list) else [None]
    if len(numbers) != 2 or None in numbers:
        raise ValueError(f"{path}: expected kpt_shape as two numbers, got {shape!r:.100}; correct it.")
    return numbers[0] * numbers[1]


def _base(content: dict, path: Path) -> Path:
    """What relative paths start from: `path` of the YAML where that exists, else the YAML's own folder."""
    given = content.get("path")
    for folder in (path.parent / given, Path(given)) if isinstance(given, str) and given else ():
        if folder.is_dir():
            return folder
    return path.parent


def _place(written: str, bases: Sequence[Path]) -> Path | None:
    """The file or folder of a path, which may begin with folders of another machine, or with `../` and `data/` that are
    not there: as much of its end as exists below one of the bases."""
    parts = Path(written.strip().replace("\\", "/")).parts
    for start in range(len(parts)):
        for base in bases:
            place = base / Path(*parts[start:])
            if place.exists():
                return place
    return None


def _images(entry: Any, base: Path, path: Path, split: str, findings: Findings, entries: dict[str, Any]) -> list[Path]:
    needed = _is_needed(split, entries)
    found: dict[Path, None] = {}
    for one in entry if isinstance(entry, list) else [entry]:
        is_path = isinstance(one, str) and one.strip("./ ") and "://" not in one  # nothing is fetched
        place = _place(one, (base, path.parent)) if is_path else None
        if place is not None and place.is_dir():
            found |= dict.fromkeys(image_files(place))
        elif place is not None and place.suffix == ".txt":
            for number, line in enumerate(read_lines(place, findings, split), start=1):
                if not line.strip():
                    continue
                # ./images/a.jpg is relative to the list, images/a.jpg to the data set, as YOLO's tools have it
                bases = (place.parent, base) if line.startswith("./") else (base, place.parent)
                image = _place(line, bases) or bases[0] / line.strip()
                if image in found:
                    message = f"{line.strip()!r} a second time; remove the line."
                    findings.error("duplicate id", f"{place}:{number}", message, split)
                found[image] = None
        else:
            message = f"{split}: no such folder or .txt list, {base / str(one)!s:.200}; correct the entry, or `path`."
            (findings.error if needed else findings.warning)("missing folder", path, message, split)
    if not found and not needed:
        findings.warning("empty split", path, f"{split}: no images, so this split is left out.", split)
    return list(found)


def _label_path(image: Path) -> Path:
    """images/ -> labels/ (the last in the path), the suffix -> .txt; beside the image where that is not there."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index].lower() == "images":
            parts[index] = "labels" if parts[index] == "images" else "Labels"
            there, beside = Path(*parts).with_suffix(".txt"), image.with_suffix(".txt")
            return beside if beside.is_file() and not there.is_file() else there
    return image.with_suffix(".txt")


def _report_orphans(images_of: dict[str, list[Path]], split: str, findings: Findings) -> None:
    """Label files whose image is missing are objects that would be lost; they are counted."""
    # a flat labels/ folder may serve several splits that are lists: then others' label files are no orphans
    expected = {_label_path(image) for images in images_of.values() for image in images}
    for folder in sorted({_label_path(image).parent for image in images_of[split]}):
        if "labels" not in folder.parts:
            continue
        last = len(folder.parts) - 1 - folder.parts[::-1].index("labels")
        images = Path(*folder.parts[:last], "images", *folder.parts[last + 1 :])
        stems = {path.stem for path in images.iterdir()} if images.is_dir() else set()
        orphans = sorted(
            path
            for path in folder.glob("*.txt")
            if path not in expected and path.name not in _NAME_FILES and path.stem not in stems
        )
        if orphans:
            message = f"{len(orphans)} label files have no image, such as {orphans[0].name}; restore or remove them."
            findings.warning("label without image", folder, message, split)
