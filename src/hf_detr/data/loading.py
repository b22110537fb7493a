"""`load_detection_dataset`: images with boxes in any usual format -> `datasets` objects in the one schema."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from warnings import warn

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
from .formats import FORMATS as FILE_FORMATS
from .formats.base import BAD_IMAGE, Findings, RawDataset, chosen_splits, in_utf8, split_name, with_train
from .formats.hub import is_for_datasets, is_saved, one_schema, tar_shards, to_detection_schema, unpacked
from .formats.images import visible_folders
from .formats.records import refuse_fractions, row_of
from .schema import detection_features
from .verification import ON_BAD_IMAGE, without_bad_images

logger = logging.getLogger(__name__)

FORMATS = ("auto", *sorted(FILE_FORMATS), "hub", "saved")
# what each format understands of these options
_DEFAULTS = {
    "masks": True,
    "class_names": None,
    "image_dir": None,
    "bbox_format": "xywh",
    "voc_first_pixel": 1,
    "voc_difficult": "keep",
    "hub_options": None,
}
_OPTIONS = {name: one.options for name, one in FILE_FORMATS.items()} | {
    "hub": ("masks", "class_names", "bbox_format", "hub_options"),
    "saved": ("masks", "class_names", "bbox_format"),
}
_LOOKED_FOR = ", ".join(
    (
        "dataset_dict.json or state.json (save_to_disk)",
        *(one.looks_for for one in FILE_FORMATS.values()),
        "*.parquet, *.tar or metadata.jsonl (datasets)",
    )
)


def load_detection_dataset(
    source: str | Path | Any,
    format: str = "auto",
    *,
    splits: str | Sequence[str] | None = None,
    streaming: bool = False,
    on_bad_box: str = "error",
    on_bad_image: str = "error",
    hold_out: float | None = None,
    seed: int = 0,
    masks: bool = True,
    class_names: Sequence[str] | None = None,
    image_dir: str | Path | None = None,
    bbox_format: str = "xywh",
    voc_first_pixel: int = 1,
    voc_difficult: str = "keep",
    hub_options: dict | None = None,
) -> DatasetDict | IterableDatasetDict:
    """Reads a detection data set into a DatasetDict of the schema in `schema.py` (IterableDatasetDict if `streaming`).

    `source` and `format` ("auto" finds out, and says so in the log):

    - "coco": a COCO JSON file, a folder with annotations/*.json, or folders with one JSON beside the images each;
    - "panoptic": annotations/panoptic_*.json with folders of PNG files, where there is no instances_*.json;
    - "voc": JPEGImages, Annotations, ImageSets/Main; or XML beside images;
    - "voc_masks": SegmentationClass, SegmentationObject, ImageSets/Segmentation, where there is no XML;
    - "yolo": a data.yaml or its folder; or classes.txt beside images and labels;
    - "saved": a folder written by save_to_disk;
    - "hub": a name on the Hub, or a local folder `datasets.load_dataset` understands (Parquet, imagefolder, tar shards
      of WebDataset);
    - a Dataset, IterableDataset, or dict of them, as the Hub's.

    A folder that holds the data set in a folder below (VOCdevkit/VOC2012) will do. Splits are called train,
    validation, test (val, valid and dev are "validation"); a lone split of another name is "train"; "trainval" and
    other names stay; `splits` picks some. With `hold_out`, a share in (0, 1), there always is something to train and to
    evaluate on: a lone split is "train" whatever its name, and where there is neither validation nor test, that share
    of its images, chosen by `seed`, becomes "validation". Images stay references until used; images without objects
    stay; class ids are contiguous from 0 in the order of the original ids (`schema.original_category_ids`), the same in
    all splits. `streaming` keeps a Hub data set on the Hub, larger than the disk; local files are read where they are
    either way.

    `on_bad_box`: boxes that are empty, negative, NaN or outside their image raise ("error"), are left out ("drop"),
    or cut to the image where something remains ("clip"), both with a warning that counts them; "keep" changes nothing.
    A box up to 1 px beyond the edge is rounding and always cut. `on_bad_image`: image files that are missing raise
    ("error"), damaged ones when they are used; or all images are opened now (those found good are remembered) and
    the missing, the damaged and those of another size than annotated are left out ("drop"), with a warning that counts
    them.

    `masks=False` leaves masks aside; else objects have a reference to theirs where the source has masks, and one that
    cannot be read is left out with a warning that counts them (`check_dataset(..., masks=True)` refuses it).

    `class_names` fixes classes and their order (VOC), or names those of a data set with bare numbers ("hub");
    `image_dir` is where COCO's images are; `bbox_format` one of xywh, xyxy, cxcywh, and these with `_fraction`;
    `voc_first_pixel`, `voc_difficult`: see `voc.py`; `hub_options` go to `datasets.load_dataset`.

    Raises ValueError naming file (line, annotation, row), value and remedy, FileNotFoundError for a source that is
    not there.
    """
    if hold_out is not None and not 0 < hold_out < 1:
        raise ValueError(f"hold_out must be a share between 0 and 1, such as 0.1, got {hold_out!r}.")
    if hold_out is not None and splits is not None:
        raise ValueError("hold_out looks at all splits; leave out one of splits and hold_out.")
    loaded = load(
        source, format, Findings(), splits=splits, streaming=streaming, on_bad_box=on_bad_box,
        on_bad_image=on_bad_image, masks=masks, class_names=class_names, image_dir=image_dir, bbox_format=bbox_format,
        voc_first_pixel=voc_first_pixel, voc_difficult=voc_difficult, hub_options=hub_options,
    ).splits  # fmt: skip
    return loaded if hold_out is None else with_validation(loaded, hold_out, seed, source)


def with_validation(splits: Any, share: float, seed: int, source: Any) -> Any:
    """The splits with "train", and "validation" where there is no "test"; see `load_detection_dataset`."""
    if len(splits) == 1:
        splits = type(splits)(train=next(iter(splits.values())))
    if "train" not in splits:
        raise ValueError(f"{source}: no split 'train', only {', '.join(splits)}; rename one of them.")
    if "validation" in splits or "test" in splits:
        return splits
    train = splits["train"]
    if isinstance(train, IterableDataset):
        raise ValueError(f"{source}: a stream of one split; nothing can be held out of it, so leave out hold_out.")
    if len(train) < 2:
        raise ValueError(f"{source}: {len(train)} image is not enough to train and to evaluate; add some.")
    count = min(max(1, round(share * len(train))), len(train) - 1)
    parts = train.train_test_split(count, seed=seed)
    others = {name: one for name, one in splits.items() if name != "train"}
    return type(splits)(train=parts["train"], validation=parts["test"], **others)


@dataclass
class Loaded:
    """What `load` returns: `splits`, how they were found, and, where problems are collected, where each annotation of a
    text format stands, and which images lost all of theirs as faulty."""

    splits: Any
    format: str
    description: str
    places: dict[tuple[str, int, int], str] = field(
        default_factory=dict
    )  # (split, image_id, annotation id) -> file:line
    emptied: set[tuple[str, int]] = field(default_factory=set)  # (split, image_id)


def load(
    source: Any,
    format: str,
    findings: Findings,
    *,
    splits: str | Sequence[str] | None = None,
    streaming: bool = False,
    on_bad_box: str = "error",
    on_bad_image: str = "error",
    **options: Any,
) -> Loaded:
    """`load_detection_dataset` with a say in what happens to problems: raised, or collected in `findings`."""
    if on_bad_box not in ON_BAD_BOX:
        raise ValueError(f"on_bad_box must be one of {ON_BAD_BOX}, got {on_bad_box!r}.")
    if on_bad_image not in ON_BAD_IMAGE:
        raise ValueError(f"on_bad_image must be one of {ON_BAD_IMAGE}, got {on_bad_image!r}.")
    if on_bad_image == "drop":
        findings.dropped += BAD_IMAGE
    options = _DEFAULTS | options
    if options["bbox_format"] not in BOX_FORMATS:
        raise ValueError(f"bbox_format must be one of {BOX_FORMATS}, got {options['bbox_format']!r}.")
    format, source = _located(source, format)
    for name, default in _DEFAULTS.items():
        formats = [one for one, understood in _OPTIONS.items() if name in understood]
        if options[name] != default and format not in formats:
            raise ValueError(
                f"{name} is for {' and '.join(formats)} sources, but {source} is read as {format}; leave it out."
            )
    if format not in FILE_FORMATS:
        return _load_datasets(source, format, findings, splits, streaming, on_bad_box, options)
    understood = {name: options[name] for name in FILE_FORMATS[format].options}
    raw = FILE_FORMATS[format].read(Path(source), findings, splits, **understood)
    logger.info(
        "%s: %d classes, %s", raw.description, len(raw.class_names),
        ", ".join(f"{split} {len(images)} images" for split, images in raw.splits.items()),
    )  # fmt: skip
    return _as_datasets(raw, source, findings, streaming, on_bad_box)


def find_format(source: Any, format: str = "auto") -> str:
    """The format of a source: `format` itself, or for "auto" what its files say.

    Raises ValueError for an unknown format, and where no format or more than one fits; FileNotFoundError for a path
    that is absent and no possible name on the Hub.
    """
    return _located(source, format)[0]


def _located(source: Any, format: str) -> tuple[str, Any]:
    """The format, and the source itself or the one folder below it that holds a data set."""
    if format not in FORMATS:
        raise ValueError(f"format must be one of {FORMATS}, got {format!r}.")
    if not isinstance(source, (str, Path)):
        if isinstance(source, (Dataset, IterableDataset, dict)):
            return "hub", source
        raise TypeError(f"source must be a path, a name on the Hub or a datasets object, got {type(source).__name__}.")
    if format in ("hub", "saved"):
        return format, source
    path = Path(source)
    if not path.exists():
        is_name = isinstance(source, str) and source.count("/") <= 1 and not source.startswith((".", "/", "~"))
        if format == "auto" and is_name:
            return "hub", source
        raise FileNotFoundError(f"{path}: no such file or folder; check the path.")
    if format != "auto":
        return format, next((folder for folder in _below(path) if FILE_FORMATS[format].is_here(folder)), path)
    for folder in _below(path):
        if fitting := _fitting(folder):
            if len(fitting) > 1:
                raise ValueError(f"{folder}: looks like {' and like '.join(fitting)}; say which with format=.")
            return fitting[0], folder if folder != path else source
    several = [folder.name for folder in visible_folders(path) if _fitting(folder)] if path.is_dir() else []
    if several:
        raise ValueError(f"{path}: there are data sets in {', '.join(several)}; name one of these folders.")
    inside = sorted(entry.name for entry in path.iterdir())[:10] if path.is_dir() else "a file"
    raise ValueError(
        f"{path}: no data set found. Looked for {_LOOKED_FOR}; found {inside}. "
        "What a tool writes in a format of its own (LabelMe, CreateML, CSV) it exports as COCO, VOC or YOLO as well."
    )


def _fitting(path: Path) -> list[str]:
    """The formats that a file or folder is in."""
    if is_saved(path):
        return ["saved"]
    fitting = [name for name, one in FILE_FORMATS.items() if one.is_here(path)]
    return fitting or (["hub"] if is_for_datasets(path) else [])


def _below(path: Path, levels: int = 3) -> Iterator[Path]:
    """The path; then, while there is but one folder to go on in, or one that holds a data set, the folders below."""
    for _ in range(levels):
        yield path
        if not path.is_dir():
            return
        folders = visible_folders(path)
        fitting = [folder for folder in folders if _fitting(folder)]
        if len(folders) != 1 and len(fitting) != 1:
            return
        path = (fitting if len(fitting) == 1 else folders)[0]


def _as_datasets(raw: RawDataset, root: Path, findings: Findings, streaming: bool, on_bad_box: str) -> Loaded:
    """The `datasets` objects of what a reader read."""
    loaded = Loaded({}, raw.format, raw.description)
    objects = (one for images in raw.splits.values() for image in images for one in image.annotations)
    with_masks = any(one.segmentation is not None for one in objects)
    features = detection_features(raw.class_names, raw.original_ids, with_masks, raw.panoptic)
    for split, images in raw.splits.items():
        images = in_utf8(images, split, findings)
        if on_bad_box != "keep":
            refuse_fractions(images, split, root, findings)
        policy, places = BoxPolicy(on_bad_box, split), loaded.places if findings.collect else None
        rows = [row_of(image, policy, list(features["objects"]), places) for image in images]
        if findings.collect:
            lost = (image.image_id for image in images if image.left_out and not image.annotations)
            loaded.emptied.update((split, image_id) for image_id in lost)
        policy.warn()
        findings.warn_of_masks(split)
        columns = {name: [row[name] for row in rows] for name in features}
        info = DatasetInfo(features=features)
        dataset = _without_bad_images(Dataset.from_dict(columns, features=features, info=info), split, findings)
        said = (f"{raw.description}, split {split!r}", policy.summary(), findings.summary_of_dropped(split))
        dataset.info.description = ". ".join(filter(None, said))
        loaded.splits[split] = dataset.to_iterable_dataset(_shards(len(dataset))) if streaming else dataset
    loaded.splits = (IterableDatasetDict if streaming else DatasetDict)(loaded.splits)
    return loaded


def _without_bad_images(dataset: Any, split: str, findings: Findings) -> Any:
    """Under on_bad_image="drop" the rows with a good image, with a warning; a check sees all rows."""
    if findings.collect or not findings.dropped:
        return dataset
    dataset = without_bad_images(dataset, split, findings)
    if said := findings.summary_of_dropped(split):
        warn(said, stacklevel=2)
    return dataset


def _shards(rows: int) -> int:
    """Of a stream of local files: what worker processes and processes share out."""
    return max(1, min(rows, 64))


def _load_datasets(
    source: Any, format: str, findings: Findings, splits: Any, streaming: bool, on_bad_box: str, options: dict
) -> Loaded:
    if isinstance(source, (str, Path)):
        name, found = str(source), _open(str(source), format, streaming, options["hub_options"] or {})
    else:
        name, found = "the data set given", source
    if isinstance(found, (Dataset, IterableDataset)):
        found = {str(found.split or "train"): found}
    if not found:
        raise ValueError(f"{name}: there is no split in it; save the data set again.")
    # as plain rows, whatever format was set
    found = {split: one.with_format(None) if isinstance(one, Dataset) else one for split, one in found.items()}
    found = with_train({split_name(str(split)): one for split, one in found.items()})
    # over all splits, whatever the splits wanted: a class has one number
    schema = one_schema(found, options["class_names"], options["masks"], name, findings)
    result = {}
    for split in chosen_splits(found, splits, name):
        dataset = found[split]
        if streaming and isinstance(dataset, Dataset):
            dataset = dataset.to_iterable_dataset(_shards(len(dataset)))
        policy = BoxPolicy(on_bad_box, split)
        read = to_detection_schema(dataset, split, name, policy, findings, schema, options["bbox_format"])
        result[split] = _without_bad_images(read, split, findings)
        if isinstance(dataset, Dataset):
            policy.warn()
            findings.warn_of_masks(split)
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
    path = Path(source)
    try:
        if format == "saved":
            saved = load_from_disk(source)
            for dataset in saved.values() if isinstance(saved, DatasetDict) else [saved]:
                next(iter(dataset.with_format("arrow")), None)  # a file that is damaged says so here
            return saved
        if path.suffix == ".tar" or (path.is_dir() and any(path.glob("**/*.tar"))):
            shards = load_dataset("webdataset", data_files=tar_shards(path), streaming=streaming, **hub_options)
            return {split: unpacked(dataset) for split, dataset in shards.items()}
        # the whole path: a folder called "parquet" or "json" is not the builder of that name
        return load_dataset(str(path.resolve()) if path.exists() else source, streaming=streaming, **hub_options)
    except Exception as error:  # of many kinds, by format
        reason = f"{type(error).__name__}: {_first_line(error.__cause__ or error)}"
        if path.exists():
            raise ValueError(
                f"{source}: datasets cannot read it ({reason}); correct the file, or write it anew."
            ) from error
        raise FileNotFoundError(
            f"{source}: no such file or folder here, and as a data set of the Hub it could not be loaded ({reason}); "
            "check the name, the network, and your login for a private one."
        ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:300]
