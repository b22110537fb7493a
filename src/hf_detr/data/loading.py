"""`load_detection_dataset`: pictures with boxes in any usual format -> `datasets` objects in the one schema."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    DatasetDict,
    DatasetInfo,
    IterableDataset,
    IterableDatasetDict,
    load_dataset,
    load_from_disk,
)

from .box_policy import BOX_FORMATS, ON_BAD_BOX, BoxPolicy, look_like_fractions
from .formats.base import Findings, ImageRecord, chosen_splits, split_name
from .formats.coco import is_coco, read_coco
from .formats.hub import to_detection_schema
from .formats.voc import is_voc, read_voc
from .formats.yolo import is_yolo, read_yolo
from .schema import detection_features

logger = logging.getLogger(__name__)

FORMATS = ("auto", "coco", "voc", "yolo", "hub", "saved")
# option -> the formats that understand it
_OPTIONS = {
    "class_names": ("voc", "hub", "saved"),
    "image_dir": ("coco",),
    "bbox_format": ("coco", "hub", "saved"),
    "voc_first_pixel": ("voc",),
    "voc_difficult": ("voc",),
    "hub_options": ("hub",),
}
_DEFAULTS = {
    "class_names": None,
    "image_dir": None,
    "bbox_format": "xywh",
    "voc_first_pixel": 1,
    "voc_difficult": "keep",
    "hub_options": None,
}
_LOOKED_FOR = (
    "dataset_dict.json or state.json (save_to_disk), data.yaml (YOLO), Annotations/*.xml or *.xml beside pictures "
    "(VOC), annotations/*.json or <split>/*.coco.json (COCO), *.parquet or metadata.jsonl (datasets)"
)


def load_detection_dataset(
    source: str | Path | Any,
    format: str = "auto",
    *,
    splits: str | Sequence[str] | None = None,
    streaming: bool = False,
    on_bad_box: str = "error",
    class_names: Sequence[str] | None = None,
    image_dir: str | Path | None = None,
    bbox_format: str = "xywh",
    voc_first_pixel: int = 1,
    voc_difficult: str = "keep",
    hub_options: dict | None = None,
) -> DatasetDict | IterableDatasetDict:
    """Reads a detection data set into a DatasetDict of the schema in `schema.py` (IterableDatasetDict if `streaming`).

    `source` and `format` ("auto" finds out, and says so in the log):

    - "coco": a COCO JSON file, a folder with annotations/*.json, or folders with one JSON beside the pictures each;
    - "voc": JPEGImages, Annotations, ImageSets/Main; or XML beside pictures;
    - "yolo": a data.yaml or its folder;
    - "saved": a folder written by save_to_disk;
    - "hub": a name on the Hub, or a local folder `datasets.load_dataset` understands (Parquet, imagefolder);
    - a Dataset, IterableDataset, or dict of them, as the Hub's.

    Splits are called train, validation, test (val, valid and dev are "validation"; "trainval" and other names stay);
    `splits` picks some. Images stay references until used; pictures without objects stay; class ids are contiguous
    from 0 in the order of the original ids (`schema.original_category_ids`). `streaming` keeps a Hub data set on the
    Hub, larger than the disk; local files are read where they are either way.

    `on_bad_box`: boxes that are empty, negative, NaN or outside their image raise ("error"), are left out ("drop"),
    or cut to the image where something remains ("clip"), both with a warning that counts them; "keep" changes nothing.
    A box up to 1 px beyond the edge is rounding and always cut.

    `class_names` fixes classes and their order (VOC), or names those of a data set with bare numbers ("hub");
    `image_dir` is where COCO's pictures are; `bbox_format` one of xywh, xyxy, cxcywh, and these with `_fraction`;
    `voc_first_pixel`, `voc_difficult`: see `voc.py`; `hub_options` go to `datasets.load_dataset`.

    Raises ValueError naming file (line, annotation, row), value and remedy, FileNotFoundError for a source that is
    not there.
    """
    return load(
        source, format, Findings(), splits=splits, streaming=streaming, on_bad_box=on_bad_box, class_names=class_names,
        image_dir=image_dir, bbox_format=bbox_format, voc_first_pixel=voc_first_pixel, voc_difficult=voc_difficult,
        hub_options=hub_options,
    ).splits  # fmt: skip


@dataclass
class Loaded:
    """What `load` returns: `splits`, how they were found, and where each annotation of a text format stands."""

    splits: Any
    format: str
    description: str
    places: dict[tuple[str, int, int], str] = field(
        default_factory=dict
    )  # (split, image_id, annotation id) -> file:line


def load(
    source: Any,
    format: str,
    findings: Findings,
    *,
    splits: str | Sequence[str] | None = None,
    streaming: bool = False,
    on_bad_box: str = "error",
    **options: Any,
) -> Loaded:
    """`load_detection_dataset` with a say in what happens to problems: raised, or collected in `findings`."""
    if on_bad_box not in ON_BAD_BOX:
        raise ValueError(f"on_bad_box must be one of {ON_BAD_BOX}, got {on_bad_box!r}.")
    options = _DEFAULTS | options
    if options["bbox_format"] not in BOX_FORMATS:
        raise ValueError(f"bbox_format must be one of {BOX_FORMATS}, got {options['bbox_format']!r}.")
    format = find_format(source, format)
    for name, formats in _OPTIONS.items():
        if options[name] != _DEFAULTS[name] and format not in formats:
            raise ValueError(
                f"{name} is for {' and '.join(formats)} sources, but {source} is read as {format}; leave it out."
            )
    if format in ("coco", "voc", "yolo"):
        return _load_files(Path(source), format, findings, splits, streaming, on_bad_box, options)
    return _load_datasets(source, format, findings, splits, streaming, on_bad_box, options)


def find_format(source: Any, format: str = "auto") -> str:
    """The format of a source: `format` itself, or for "auto" what its files say.

    Raises ValueError for an unknown format, and where no format or more than one fits; FileNotFoundError for a path
    that is absent and no possible name on the Hub.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {FORMATS}, got {format!r}.")
    if not isinstance(source, (str, Path)):
        if isinstance(source, (Dataset, IterableDataset, dict)):
            return "hub"
        raise TypeError(f"source must be a path, a name on the Hub or a datasets object, got {type(source).__name__}.")
    if format != "auto":
        return format
    path = Path(source)
    if not path.exists():
        if isinstance(source, str) and source.count("/") <= 1 and not source.startswith((".", "/", "~")):
            return "hub"
        raise FileNotFoundError(f"{path}: no such file or folder; check the path.")
    if _is_saved(path):
        return "saved"
    fitting = [name for name, fits in (("yolo", is_yolo), ("voc", is_voc), ("coco", is_coco)) if fits(path)]
    if not fitting and (_has_parquet(path) or any(path.glob("**/metadata.*"))):
        fitting = ["hub"]
    if len(fitting) > 1:
        raise ValueError(f"{path}: looks like {' and like '.join(fitting)}; say which with format=.")
    if not fitting:
        inside = sorted(entry.name for entry in path.iterdir())[:10] if path.is_dir() else "a file"
        raise ValueError(f"{path}: no data set found. Looked for {_LOOKED_FOR}; found {inside}.")
    return fitting[0]


def _load_files(
    root: Path, format: str, findings: Findings, splits: Any, streaming: bool, on_bad_box: str, options: dict
) -> Loaded:
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such file or folder; check the path.")
    if format == "coco":
        image_dir = options["image_dir"] and Path(options["image_dir"])
        raw = read_coco(root, findings, splits, image_dir, options["bbox_format"])
    elif format == "voc":
        raw = read_voc(
            root, findings, splits, options["class_names"], options["voc_first_pixel"], options["voc_difficult"]
        )
    else:
        raw = read_yolo(root, findings, splits)
    logger.info(
        "%s: %d classes, %s", raw.description, len(raw.class_names),
        ", ".join(f"{split} {len(images)} images" for split, images in raw.splits.items()),
    )  # fmt: skip

    loaded = Loaded(IterableDatasetDict() if streaming else DatasetDict(), format, raw.description)
    features = detection_features(raw.class_names, raw.original_ids)
    for split, images in raw.splits.items():
        if on_bad_box != "keep":
            _refuse_fractions(images, split, root, findings)
        policy = BoxPolicy(on_bad_box, split)
        rows = [_row(image, policy, split, loaded.places if findings.collect else None) for image in images]
        policy.warn()
        if streaming:
            loaded.splits[split] = IterableDataset.from_generator(_each, features=features, gen_kwargs={"rows": rows})
        else:
            columns = {name: [row[name] for row in rows] for name in features}
            description = ". ".join(filter(None, (f"{raw.description}, split {split!r}", policy.summary())))
            info = DatasetInfo(description=description, features=features)
            loaded.splits[split] = Dataset.from_dict(columns, features=features, info=info)
    return loaded


def _each(rows: list[dict]) -> Any:
    yield from rows  # a list among a generator's arguments is what workers and processes share out


def _row(image: ImageRecord, policy: BoxPolicy, split: str, places: dict | None) -> dict:
    objects: dict[str, list] = {"id": [], "bbox": [], "category": [], "area": [], "iscrowd": []}
    for one in image.annotations:
        box = policy(one.bbox_xywh_px, image.width, image.height, one.where)
        if box is None:
            continue
        whole = one.bbox_xywh_px[2] * one.bbox_xywh_px[3]
        objects["id"].append(one.id)
        objects["bbox"].append(list(box))
        objects["category"].append(one.category)
        # the area of a mask is the source's; that of a box follows the box that was cut
        objects["area"].append(box[2] * box[3] if one.area == whole else one.area)
        objects["iscrowd"].append(one.iscrowd)
        if places is not None:
            places[split, image.image_id, one.id] = one.where
    return {
        "image": {"path": str(image.path), "bytes": None},
        "image_id": image.image_id,
        "width": image.width,
        "height": image.height,
        "objects": objects,
    }


def _refuse_fractions(images: list[ImageRecord], split: str, root: Path, findings: Findings) -> None:
    boxes = [one.bbox_xywh_px for image in images for one in image.annotations]
    side = max((max(image.width, image.height) for image in images), default=0)
    if look_like_fractions(boxes, side):
        findings.error(
            "fractions given as pixels", root,
            f"all {len(boxes)} boxes of split {split!r} are numbers up to 1, such as {boxes[0]}, in images of up to "
            f"{side} pixels; these are fractions: load with bbox_format='xywh_fraction' (or 'xyxy_fraction', "
            "'cxcywh_fraction'), or write pixels.", split,
        )  # fmt: skip


def _load_datasets(
    source: Any, format: str, findings: Findings, splits: Any, streaming: bool, on_bad_box: str, options: dict
) -> Loaded:
    if isinstance(source, (str, Path)):
        name, found = str(source), _open(str(source), format, streaming, options["hub_options"] or {})
    else:
        name, found = "the data set given", source
    if isinstance(found, (Dataset, IterableDataset)):
        found = {str(found.split or "train"): found}
    found = {split_name(str(split)): one for split, one in found.items()}
    result = {}
    for split in chosen_splits(found, splits, name):
        dataset = found[split]
        if streaming and isinstance(dataset, Dataset):
            dataset = dataset.to_iterable_dataset()
        policy = BoxPolicy(on_bad_box, split)
        where = (options["class_names"], options["bbox_format"])
        result[split] = to_detection_schema(dataset, split, name, policy, findings, *where)
        if isinstance(dataset, Dataset):
            policy.warn()
            if on_bad_box != "keep" and _column_of_fractions(result[split]):
                findings.error(
                    "fractions given as pixels", f"{name}, split {split!r}",
                    "all boxes are numbers up to 1; load with bbox_format='xywh_fraction' (or 'xyxy_fraction', "
                    "'cxcywh_fraction').", split,
                )  # fmt: skip
    iterable = any(isinstance(one, IterableDataset) for one in result.values())
    logger.info("%s: a datasets source with splits %s", name, list(result))
    return Loaded((IterableDatasetDict if iterable else DatasetDict)(result), format, f"datasets, {name}")


def _column_of_fractions(dataset: Dataset) -> bool:
    columns = dataset.select_columns(["width", "height", "objects"])
    side = max((max(row["width"], row["height"]) for row in columns), default=0)
    return look_like_fractions([box for row in columns for box in row["objects"]["bbox"]], side)


def _open(source: str, format: str, streaming: bool, hub_options: dict) -> Any:
    """The `datasets` object of a save_to_disk folder, a local folder, or a name on the Hub."""
    if format == "saved":
        return load_from_disk(source)
    if Path(source).exists():
        # the whole path: a folder called "parquet" or "json" is not the builder of that name
        return load_dataset(str(Path(source).resolve()), streaming=streaming, **hub_options)
    try:
        return load_dataset(source, streaming=streaming, **hub_options)
    except Exception as error:
        raise FileNotFoundError(
            f"{source}: no such file or folder here, and as a data set of the Hub it could not be loaded "
            f"({type(error).__name__}: {error}); check the name, the network, and your login for a private one."
        ) from error


def _is_saved(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _has_parquet(path: Path) -> bool:
    return path.suffix == ".parquet" or any(path.glob("**/*.parquet"))
