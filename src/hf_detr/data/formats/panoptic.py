"""COCO panoptic: annotations/panoptic_*.json, each with a folder of PNG files whose colours are segments.

Every segment, of things or of stuff, becomes an object: its mask is a reference to its PNG and its colour there.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .base import Findings, Format, RawDataset, chosen_splits
from .coco import annotation_files, is_coco, json_files, looks_like_coco, read_contents
from .coco_content import read_content
from .files import whole_number
from .images import ImageFinder


def is_panoptic(root: Path) -> bool:
    """Whether `root` is a panoptic JSON file, or a folder with some and without others of COCO."""
    return bool(annotation_files(root, _panoptic_files)) and not is_coco(root)


def read_panoptic(
    root: Path,
    findings: Findings,
    splits: Sequence[str] | None = None,
    masks: bool = True,
    image_dir: Path | None = None,
) -> RawDataset:
    """Reads panoptic annotations as `read_coco` reads detection's; a category is of things unless `isthing` is 0.

    The PNG files are looked for in the folder of the JSON file's name, beside it or in `root`. Their pixels of value 0
    (black), and segments that the JSON does not list, belong to no object. Raises ValueError (unless findings are
    collected) naming the file, the annotation and the segment.
    """
    files = annotation_files(root, _panoptic_files)
    if not files:
        raise ValueError(f"{root}: no panoptic annotation file; expected annotations/panoptic_*.json.")
    contents = {}
    for split in chosen_splits(files, splits, root):
        content = read_content(files[split])
        contents[split] = {**content, **_segments(content["annotations"], files[split], root, split, findings)}
    return read_contents("panoptic", root, files, contents, findings, masks, image_dir)


PANOPTIC = Format(
    "panoptic", "annotations/panoptic_*.json (COCO panoptic)", is_panoptic, read_panoptic, ("masks", "image_dir")
)


def _panoptic_files(folder: Path) -> list[Path]:
    """The panoptic files in a folder, or the file itself."""
    if folder.is_file():
        return [folder] if folder.suffix.lower() == ".json" and looks_like_coco(folder, panoptic=True) else []
    files = json_files(folder)
    named = [path for path in files if path.name.startswith("panoptic_")]
    return named or [path for path in files if looks_like_coco(path, panoptic=True)]


def _segments(entries: list, path: Path, root: Path, split: str, findings: Findings) -> dict[str, list]:
    """The segments of all images as `annotations` of COCO's form, and the `places` they have in the file."""
    root = root if root.is_dir() else path.parent
    folders = (path.with_suffix(""), root / path.stem, path.parent / "panoptic", root / "panoptic", path.parent, root)
    finder = ImageFinder(folders, shallow=(path.parent, root))
    objects: list[Any] = []
    places: list[str] = []
    for index, entry in enumerate(entries):
        where = f"annotations[{index}]"
        segments = entry.get("segments_info") if isinstance(entry, Mapping) else None
        name = entry.get("file_name") if isinstance(entry, Mapping) else None
        if not isinstance(segments, list) or not isinstance(name, str) or not name:
            message = "expected file_name, of a PNG, and a list segments_info; correct or remove the annotation."
            findings.error("corrupt annotation", f"{path}: {where}", message, split)
            continue
        file = str(finder.find(name) or finder.expected(name))
        for number, segment in enumerate(segments):
            one = segment
            if isinstance(segment, Mapping):
                reference = {"file": file, "id": whole_number(segment.get("id"))}
                one = {name: value for name, value in segment.items() if name != "id"}  # an image's own: renumbered
                one |= {"image_id": entry.get("image_id"), "segmentation": reference}
            objects.append(one)
            places.append(f"{where}.segments_info[{number}]")
    finder.report(path, split, findings)
    return {"annotations": objects, "places": places}
