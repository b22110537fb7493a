"""`datasets` objects of other makers (the Hub, Parquet, save_to_disk, image folders) brought into the one schema."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from math import log10
from pathlib import Path
from typing import Any
from warnings import warn

from datasets import ClassLabel, Dataset, DatasetInfo, Features, Image, IterableDataset, concatenate_datasets

from ..box_policy import BoxPolicy, is_area_of, to_xywh_px
from ..masks import box_of
from ..schema import detection_features, is_detection_dataset
from ..verification import is_good
from .base import UNREADABLE, USUAL_SPLITS, Findings, check_class_names, split_name, upright_size
from .files import is_bad_area

# the names under which data sets on the Hub keep the same thing
_OBJECTS = ("objects", "annotations", "object")
_BBOX = ("bbox", "bboxes", "boxes", "box")
_CATEGORY = ("category", "categories", "category_id", "label", "labels", "class", "class_label")
_ID = ("id", "bbox_id", "annotation_id", "ids")
_CROWD = ("iscrowd", "is_crowd")
_MASKS = ("segmentation", "segmentations", "polygons", "polygon", "rle")


def to_detection_schema(
    dataset: Dataset | IterableDataset,
    split: str,
    source: str,
    policy: BoxPolicy,
    findings: Findings,
    schema: Features,
    bbox_format: str = "xywh",
) -> Dataset | IterableDataset:
    """One split in the schema of `schema.py`; images stay what they were, references or encoded bytes.

    Needs a column of images and one of objects with boxes and categories, under the usual names; width, height (else
    read from the image's header), image_id (else the row number), areas, ids and iscrowd are filled in where absent.
    `schema`, of `one_schema`, says how the classes are numbered. Raises ValueError naming the row.
    """
    dataset = _with_features(dataset)
    names = _Columns(dataset.features, f"{source}, split {split!r}")
    rows = _RowReader(names, schema, split, source, policy, findings, bbox_format)

    if isinstance(dataset, IterableDataset):
        wanted = dataset.select_columns(names.used).cast_column(names.image, Image(decode=False))
        others = [name for name in names.used if name not in schema]
        # features given to `map` itself would end decoding for good: later casts of a typed stream change nothing
        read = wanted.map(_Streamed(rows), with_indices=True, remove_columns=others or None)
        if findings.dropped and not findings.collect:
            read = read.filter(is_good)
        return read.cast(schema)

    known = is_detection_dataset(dataset) and dataset.features["objects"] == schema["objects"]
    if known and bbox_format == "xywh" and not rows.any_change(dataset):
        return dataset
    undecoded = dataset.select_columns(names.used).cast_column(names.image, Image(decode=False))
    light = undecoded if names.needs_header else undecoded.remove_columns(names.image)
    columns: dict[str, list] = {name: [] for name in schema if name != "image"}
    for index, row in enumerate(light):
        for name, value in rows(row, index).items():
            if name != "image":
                columns[name].append(value)
    rest = Features({name: schema[name] for name in columns})
    images = dataset.select_columns([names.image]).rename_columns(
        {names.image: "image"} if names.image != "image" else {}
    )
    described = DatasetInfo(description=dataset.info.description or f"{source}, split {split!r}.", features=rest)
    return concatenate_datasets(
        [images.cast_column("image", Image()), Dataset.from_dict(columns, features=rest, info=described)], axis=1
    )


class _Columns:
    """Where a data set keeps what, by the names and types of its features."""

    def __init__(self, features: Features, where: str):
        images = [name for name, feature in features.items() if isinstance(feature, Image)]
        self.image = "image" if "image" in images else (images[0] if len(images) == 1 else "")
        self.objects = next((name for name in _OBJECTS if _fields(features.get(name)) is not None), "")
        fields = _fields(features.get(self.objects)) or {}
        of_masks = [name for name in _MASKS if not isinstance(fields.get(name), dict)]  # else a dict of lists
        self.bbox, self.category, self.id, self.crowd, self.mask = (
            next((name for name in aliases if name in fields), "")
            for aliases in (_BBOX, _CATEGORY, _ID, _CROWD, of_masks)
        )
        self.is_thing = "is_thing" if "is_thing" in fields else ""
        self.area = "area" if "area" in fields else ""
        self.optional = (self.bbox, self.id, self.area, self.crowd, self.mask, self.is_thing)
        self.category_feature = getattr(fields.get(self.category), "feature", fields.get(self.category))
        if not (self.image and (self.bbox or self.mask) and self.category):
            raise ValueError(
                f"{where}: expected a column of images and a column 'objects' with 'bbox' and 'category', got "
                f"{features}; rename_column or map the data set into these names and pass the result."
            )
        self.image_id = _integer(features, "image_id") or _integer(features, "id")
        self.width, self.height = _integer(features, "width"), _integer(features, "height")

    @property
    def needs_header(self) -> bool:
        """Whether the size of the images must be read from them."""
        return not (self.width and self.height)

    @property
    def used(self) -> list[str]:
        """The columns that are read; others are left out."""
        return [name for name in (self.image, self.image_id, self.width, self.height, self.objects) if name]


def _fields(feature: Any) -> dict | None:
    """Fields of a dict of lists, or of a list of dicts."""
    feature = getattr(feature, "feature", feature)
    return feature if isinstance(feature, dict) else None


def _integer(features: Features, name: str) -> str:
    return name if "int" in getattr(features.get(name), "dtype", "") else ""


def one_schema(
    found: Mapping[str, Any], class_names: Sequence[str] | None, masks: bool, source: str, findings: Findings
) -> Features:
    """The features of all splits: the classes of `_one_label`, and masks where one of the splits has some and `masks`
    wants them."""
    label = _one_label(found, class_names, source, findings)
    columns = [_Columns(_with_features(one).features, source) for one in found.values()]
    with_masks, panoptic = masks and any(one.mask for one in columns), any(one.is_thing for one in columns)
    schema = detection_features(label.names, None, with_masks, panoptic)
    schema["objects"]["category"].feature.id = label.id
    return schema


def _one_label(
    found: Mapping[str, Any], class_names: Sequence[str] | None, source: str, findings: Findings
) -> ClassLabel:
    """The numbering of the classes of all splits: their ClassLabel, where they have one and the same; `class_names`; or
    the names found in all splits, sorted. Raises ValueError where nothing says the names."""
    labels, names = [], set()
    for split, dataset in found.items():
        dataset = _with_features(dataset)
        columns = _Columns(dataset.features, f"{source}, split {split!r}")
        feature = columns.category_feature
        if isinstance(feature, ClassLabel):
            if class_names is not None and list(class_names) != list(feature.names):
                raise ValueError(
                    f"{source}: class_names {list(class_names)} differ from its own {feature.names}; leave them out."
                )
            labels.append(feature)
            names.update(feature.names)
        elif class_names is None:
            if getattr(feature, "dtype", "") not in ("string", "large_string") or isinstance(dataset, IterableDataset):
                raise ValueError(
                    f"{source}: objects.{columns.category} is {feature}, which does not say the class names; "
                    "pass class_names=[...] in the order of the numbers."
                )
            for objects in dataset.select_columns([columns.objects])[:][columns.objects]:
                names.update(_as_lists(objects, [columns.category])[columns.category])
    if not all(isinstance(name, str | None) for name in names):
        raise ValueError(f"{source}: class names must be words, got {sorted(map(str, names))}; name every class.")
    if class_names is None and len(labels) == len(found) and all(label == labels[0] for label in labels[1:]):
        return labels[0]
    if class_names is None:
        class_names = sorted(names - {None})
        if labels:
            message = f"the splits number their classes differently; all are numbered as {class_names}."
            findings.warning("classes renumbered", source, message)
    check_class_names(class_names, source, findings)
    return ClassLabel(names=list(class_names))


def _with_features(dataset: Any) -> Any:
    """The data set; a stream of no declared type looks at its first row."""
    return dataset if dataset.features is not None else dataset._resolve_features()


def _as_lists(objects: Any, fields: list[str]) -> dict[str, list]:
    """A dict of lists from either layout; None is no object at all."""
    if isinstance(objects, Mapping):
        return {name: list(objects.get(name) if objects.get(name) is not None else []) for name in fields}
    return {name: [one.get(name) for one in objects or [] if one] for name in fields}


class _RowReader:
    """Row of the source -> row of the schema, under the policy for bad boxes."""

    def __init__(self, columns, schema, split, source, policy, findings, bbox_format):
        self.columns, self.schema, self.split, self.source = columns, schema, split, source
        self.label = schema["objects"]["category"].feature
        self.policy, self.findings, self.bbox_format = policy, findings, bbox_format
        self.next_id = 1
        # a number means what the split's own ClassLabel says, if it has one
        self.own_names = getattr(columns.category_feature, "names", None) or self.label.names

    def __call__(self, row: dict, index: int) -> dict:
        columns = self.columns
        image_id = row[columns.image_id] if columns.image_id else index
        where = f"{self.source}, split {self.split!r}, row {index} (image_id {image_id})"
        if image_id is None:
            self._error("bad id", where, "the row has no image_id; give every image its own number.")
            image_id = index
        if columns.needs_header:
            width, height = _header_size(row[columns.image], where, self.split, self.findings)
        else:
            width, height = row[columns.width] or 0, row[columns.height] or 0
            if min(width, height) < 1:
                self._error("bad size", where, f"expected width and height in pixels, got {width} x {height}.")
        result = {"image_id": image_id, "width": width, "height": height}
        result["objects"] = self._objects(row[columns.objects], width, height, where)
        return {"image": row[columns.image], **result} if columns.image in row else result

    def _objects(self, given: Any, width: int, height: int, where: str) -> dict[str, list]:
        columns = self.columns
        fields = [columns.category, *(name for name in columns.optional if name)]
        source = _as_lists(given, fields)
        objects: dict[str, list] = {name: [] for name in self.schema["objects"]}
        lengths = {name: len(values) for name, values in source.items()}
        if len(set(lengths.values())) > 1:
            message = f"lists of objects differ in length, {lengths}; every object needs every field."
            self._error("corrupt annotation", where, message)
            return objects
        for position, category in enumerate(source[columns.category]):
            box = source[columns.bbox][position] if columns.bbox else None
            given = source[columns.mask][position] if columns.mask else None
            place = f"{where}, object {position}"
            number = source[columns.id][position] if columns.id else self.next_id
            self.next_id += 1
            category = self._category(category, place)
            if category is None:
                continue
            of_mask = box_of(given, (height, width)) if box is None and width and height else None
            if of_mask is None and (box is None or len(box) != 4 or None in list(box)):
                message = f"expected bbox as four numbers, got {box}; correct or remove the object."
                self._error("corrupt annotation", place, message)
                continue
            box = of_mask or to_xywh_px(box, self.bbox_format, width, height)
            area = source[columns.area][position] if columns.area else None
            if area is not None and is_bad_area(area, box):
                self._error("bad area", place, f"area {area} is no number of square pixels; correct it or remove it.")
                continue
            if area is not None and is_area_of(area, box):
                area = None  # it follows the box that is clipped
            if width and height:  # else reported, or dropped
                box = self.policy(box, width, height, place)
            if box is None:
                continue
            objects["id"].append(number if isinstance(number, int) else self.next_id - 1)
            objects["bbox"].append(list(box))
            objects["category"].append(category)
            objects["area"].append(box[2] * box[3] if area is None else area)
            objects["iscrowd"].append(int(bool(source[columns.crowd][position])) if columns.crowd else 0)
            if "segmentation" in objects:
                objects["segmentation"].append(self.findings.masked(given, place, self.split))
            if "is_thing" in objects:
                objects["is_thing"].append(not columns.is_thing or source[columns.is_thing][position] is not False)
        return objects

    def _error(self, kind: str, where: str, message: str) -> None:
        self.findings.error(kind, where, message, self.split)

    def any_change(self, dataset: Dataset) -> bool:
        """Whether a box or mask of a data set that has the schema would be altered; raises as the policy does."""
        trial = _RowReader(
            self.columns, self.schema, self.split, self.source, BoxPolicy(self.policy.on_bad_box, self.split),
            Findings(self.findings.collect, self.findings.dropped, self.findings.need_masks), self.bbox_format,
        )  # fmt: skip
        for index, row in enumerate(dataset.remove_columns("image")):
            objects = trial(row, index)["objects"]
            if any(objects.get(name) != row["objects"].get(name) for name in ("bbox", "segmentation")):
                return True
        self.policy.boxes = trial.policy.boxes
        self.findings.problems += trial.findings.problems
        return False

    def _category(self, value: Any, place: str) -> int | None:
        names = self.label.names
        if isinstance(value, int) and 0 <= value < len(self.own_names):
            value = self.own_names[value]
        if isinstance(value, str) and value in names:
            return names.index(value)
        message = (
            f"unknown class {value!r}, expected one of {names} (or 0 to {len(names) - 1}); correct class_names or data."
        )
        self._error("unknown class", place, message)
        return None


class _Streamed:
    """`_RowReader` for `IterableDataset.map`: a stream's end is not known here, so counts are said at 1, 10, 100 ..."""

    def __init__(self, rows: _RowReader):
        self.rows, self.said = rows, 0

    def __call__(self, row: dict, index: int) -> dict:
        result = self.rows(row, index)
        magnitude = int(log10(self.rows.policy.bad)) + 1 if self.rows.policy.bad else 0
        if magnitude > self.said:
            self.said = magnitude
            warn(f"{self.rows.source}, so far: {self.rows.policy.summary()}", stacklevel=2)
        return result


def _header_size(image: dict, where: str, split: str, findings: Findings) -> tuple[int, int]:
    """(width, height) of the upright image; (0, 0) where it cannot be read and findings are collected."""
    try:
        return upright_size(BytesIO(image["bytes"]) if image.get("bytes") else Path(image["path"]))
    except (*UNREADABLE, TypeError, AttributeError) as error:  # the last two: no image in the row
        if "corrupt image" not in findings.dropped:  # else it is left out, and counted, when all are looked at
            findings.error(
                "corrupt image", where, f"not a readable image ({error}); replace it or filter the row out.", split
            )
        return 0, 0


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def is_for_datasets(path: Path) -> bool:
    """Whether `datasets.load_dataset` reads it: Parquet, an image folder with metadata, shards of WebDataset."""
    if path.is_file():
        return path.suffix in (".parquet", ".tar")
    return any(any(path.glob(f"**/{pattern}")) for pattern in ("*.parquet", "metadata.*", "*.tar"))


def tar_shards(path: Path) -> dict[str, list[str]]:
    """Split -> its tar files: by folder, or by the beginning of the name (train-0001.tar), or all "train"."""
    shards: dict[str, list[str]] = {}
    for file in [path] if path.is_file() else sorted(path.rglob("*.tar")):
        names = (file.parent.name if file.parent != path else "", file.name.split("-")[0].split(".")[0])
        split = next((split_name(name) for name in names if split_name(name) in USUAL_SPLITS), "train")
        shards.setdefault(split, []).append(str(file))
    return shards


def unpacked(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Samples of WebDataset: the fields of their .json (`objects`, `image_id` ...) as columns beside the image."""
    fields = dataset.features.get("json")
    if not isinstance(fields, dict):
        raise ValueError(f"expected an image and a .json with objects in each sample, got {list(dataset.features)}")
    images = {name: feature for name, feature in dataset.features.items() if isinstance(feature, Image)}
    for name in images:
        dataset = dataset.cast_column(name, Image(decode=False))
    others = [name for name in dataset.features if name not in images]
    dataset = dataset.map(_json_of, remove_columns=others)
    return dataset.cast(Features({**images, **fields}))


def _json_of(row: dict) -> dict:
    return row["json"]
