"""What COCO's JSON files hold, detection and panoptic: images, categories, and their objects, checked one by one."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..box_policy import to_xywh_px
from ..masks import box_of
from .base import Annotation, Findings, ImageRecord, size_or_report
from .files import is_bad_area, is_true, pixels, read_json, whole_number
from .images import ImageFinder


def read_images(
    entries: list, finder: ImageFinder, path: Path, split: str, findings: Findings
) -> dict[str, ImageRecord]:
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
        image = finder.find(file_name)
        if image is None and finder.is_outside(file_name):
            message = (
                f"file_name {_short(file_name)} leads out of the folders of the data set, where nothing is opened; "
                "correct it, or name the folder of the images by image_dir."
            )
            findings.warning("image outside", where, message, split)
        image = image or finder.expected(file_name)
        if not (width and height):
            size = size_or_report(image, where, split, findings)
            if size is None:
                continue
            width, height = size
        images[key] = ImageRecord(image, int(key) if numbered else index + 1, width, height)
    return images


def read_objects(
    content: Mapping[str, Any],
    images: dict[str, ImageRecord],
    class_ids: dict[int, int],
    names: list[str],
    path: Path,
    split: str,
    bbox_format: str,
    findings: Findings,
    masks: bool,
) -> None:
    """Appends the annotations to their images; `places` of the content, where there are, names them in problems."""
    entries = content["annotations"]
    places = content.get("places") or [f"annotations[{index}]" for index in range(len(entries))]
    things = _things(content)
    # some writers leave ids out, others write text: then all are numbered
    renumbered = any(isinstance(entry, Mapping) and isinstance(entry.get("id"), str | None) for entry in entries)
    seen: set[int] = set()
    for index, entry in enumerate(entries):
        where = f"{path}: {places[index]}"
        if not _is_entry(entry, where, split, findings):
            continue
        number = index + 1 if renumbered else whole_number(entry.get("id"))
        where = f"{path}: annotation {_short(entry.get('id', number))} ({places[index]})"
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
        category_id = whole_number(entry.get("category_id"))
        category = class_ids.get(category_id)
        if category is None:
            message = (
                f"unknown category_id {_short(entry.get('category_id'))}, the categories are "
                f"{_short(dict(zip(class_ids, names, strict=True)))}; add the category or correct the annotation."
            )
            findings.error("unknown class", where, message, split)
            continue
        segmentation = findings.masked(entry.get("segmentation"), where, split) if masks else None
        box = _numbers(entry.get("bbox"), 4)
        if box is not None:
            box = to_xywh_px(box, bbox_format, image.width, image.height)
        elif entry.get("bbox") is None:
            box = box_of(entry.get("segmentation"), (image.height, image.width))
        if box is None:
            message = (
                f"expected bbox as four numbers, got {_short(entry.get('bbox'))}; add it or remove the annotation."
            )
            findings.error("corrupt annotation", where, message, split)
            continue
        area = _numbers([box[2] * box[3] if entry.get("area") is None else entry["area"]], 1)
        if area is None or is_bad_area(area[0], box):
            message = f"expected area in square pixels, got {_short(entry.get('area'))}; correct it, or leave it out."
            findings.error("bad area", where, message, split)
            continue
        image.left_out -= 1
        crowd = int(is_true(entry.get("iscrowd", 0)))
        image.annotations.append(
            Annotation(number, box, category, area[0], crowd, where, segmentation, things.get(category_id, True))
        )


def _things(content: Mapping[str, Any]) -> dict[int | None, bool]:
    """Category id -> whether it is of things, as panoptic files say."""
    entries = [entry for entry in content["categories"] if isinstance(entry, Mapping)]
    return {whole_number(entry.get("id")): is_true(entry.get("isthing", 1)) for entry in entries}


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


def read_content(path: Path) -> dict:
    content = read_json(path)
    missing = [key for key in ("images", "categories") if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(f"{path}: expected COCO's images, annotations and categories, {missing} missing.")
    content.setdefault("annotations", [])  # files of test images have none
    wrong = [key for key in ("images", "annotations", "categories") if not isinstance(content[key], list)]
    if wrong:
        raise ValueError(f"{path}: expected lists under images, annotations and categories, {wrong} differ.")
    return content


def read_categories(contents: dict[Path, dict], findings: Findings) -> dict[int, str]:
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
