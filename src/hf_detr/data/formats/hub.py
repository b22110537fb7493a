"""`datasets` objects of other makers (the Hub, Parquet, save_to_disk, image folders) brought into the one schema."""

from collections.abc import Sequence
from io import BytesIO
from math import log10
from pathlib import Path
from typing import Any
from warnings import warn

from datasets import ClassLabel, Dataset, DatasetInfo, Features, Image, IterableDataset, concatenate_datasets

from ..box_policy import BoxPolicy, to_xywh_px
from ..schema import detection_features, is_detection_dataset
from .base import UNREADABLE, Findings, check_class_names, upright_size

# the names under which data sets on the Hub keep the same thing
_OBJECTS = ("objects", "annotations", "object")
_BBOX = ("bbox", "bboxes", "boxes", "box")
_CATEGORY = ("category", "categories", "category_id", "label", "labels", "class", "class_label")
_ID = ("id", "bbox_id", "annotation_id", "ids")
_CROWD = ("iscrowd", "is_crowd")


def to_detection_schema(
    dataset: Dataset | IterableDataset,
    split: str,
    source: str,
    policy: BoxPolicy,
    findings: Findings,
    class_names: Sequence[str] | None = None,
    bbox_format: str = "xywh",
) -> Dataset | IterableDataset:
    """One split in the schema of `schema.py`; images stay what they were, references or encoded bytes.

    Needs a column of images and one of objects with boxes and categories, under the usual names; width, height (else
    read from the image's header), image_id (else the row number), areas, ids and iscrowd are filled in where absent.
    Categories may be ClassLabels, names, or numbers with `class_names`. Raises ValueError naming the row.
    """
    features = dataset.features
    if features is None:  # a stream of no declared type: its first row tells
        dataset = dataset._resolve_features()
        features = dataset.features
    names = _Columns(features, f"{source}, split {split!r}")
    label = _label(dataset, names, class_names, source)
    rows = _RowReader(names, label, split, source, policy, findings, bbox_format)
    schema = detection_features(label.names)
    schema["objects"]["category"].feature.id = label.id

    if isinstance(dataset, IterableDataset):
        wanted = dataset.select_columns(names.used).cast_column(names.image, Image(decode=False))
        others = [name for name in names.used if name not in schema]
        # features given to `map` itself would end decoding for good: later casts of a typed stream change nothing
        return wanted.map(_Streamed(rows), with_indices=True, remove_columns=others or None).cast(schema)

    if is_detection_dataset(dataset) and bbox_format == "xywh" and not rows.any_change(dataset):
        return dataset
    undecoded = dataset.select_columns(names.used).cast_column(names.image, Image(decode=False))
    light = undecoded if names.needs_header else undecoded.remove_columns(names.image)
    columns: dict[str, list] = {name: [] for name in schema if name != "image"}
    for index, row in enumerate(light):
        for name, value in rows(row, index).items():
            if name != "image":
                columns[name].append(value)
    rest = Features({name: schema[name] for name in columns})
    pictures = dataset.select_columns([names.image]).rename_columns(
        {names.image: "image"} if names.image != "image" else {}
    )
    described = DatasetInfo(description=dataset.info.description or f"{source}, split {split!r}.", features=rest)
    return concatenate_datasets(
        [pictures.cast_column("image", Image()), Dataset.from_dict(columns, features=rest, info=described)], axis=1
    )


class _Columns:
    """Where a data set keeps what, by the names and types of its features."""

    def __init__(self, features: Features, where: str):
        images = [name for name, feature in features.items() if isinstance(feature, Image)]
        self.image = "image" if "image" in images else (images[0] if len(images) == 1 else "")
        self.objects = next((name for name in _OBJECTS if _fields(features.get(name)) is not None), "")
        fields = _fields(features.get(self.objects)) or {}
        self.bbox, self.category, self.id, self.crowd = (
            next((name for name in aliases if name in fields), "") for aliases in (_BBOX, _CATEGORY, _ID, _CROWD)
        )
        self.area = "area" if "area" in fields else ""
        self.category_feature = getattr(fields.get(self.category), "feature", fields.get(self.category))
        if not (self.image and self.bbox and self.category):
            raise ValueError(
                f"{where}: expected a column of images and a column 'objects' with 'bbox' and 'category', got "
                f"{features}; rename_column or map the data set into these names and pass the result."
            )
        self.image_id = _integer(features, "image_id") or _integer(features, "id")
        self.width, self.height = _integer(features, "width"), _integer(features, "height")

    @property
    def needs_header(self) -> bool:
        """Whether the size of the pictures must be read from them."""
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


def _label(dataset: Any, columns: _Columns, class_names: Sequence[str] | None, source: str) -> ClassLabel:
    feature = columns.category_feature
    if isinstance(feature, ClassLabel):
        if class_names is not None and list(class_names) != list(feature.names):
            raise ValueError(
                f"{source}: class_names {list(class_names)} differ from its own {feature.names}; leave them out."
            )
        return feature
    if class_names is None:
        if getattr(feature, "dtype", "") not in ("string", "large_string") or isinstance(dataset, IterableDataset):
            raise ValueError(
                f"{source}: objects.{columns.category} is {feature}, which does not say the class names; "
                "pass class_names=[...] in the order of the numbers."
            )
        found = set()
        for objects in dataset.select_columns([columns.objects])[:][columns.objects]:
            found.update(_as_lists(objects, [columns.category])[columns.category])
        class_names = sorted(found)
    check_class_names(class_names, source)
    return ClassLabel(names=list(class_names))


def _as_lists(objects: Any, fields: list[str]) -> dict[str, list]:
    """A dict of lists from either layout; None is no object at all."""
    if isinstance(objects, dict):
        return {name: list(objects.get(name) if objects.get(name) is not None else []) for name in fields}
    return {name: [one[name] for one in objects or []] for name in fields}


class _RowReader:
    """Row of the source -> row of the schema, under the policy for bad boxes."""

    def __init__(self, columns, label, split, source, policy, findings, bbox_format):
        self.columns, self.label, self.split, self.source = columns, label, split, source
        self.policy, self.findings, self.bbox_format = policy, findings, bbox_format
        self.next_id = 1

    def __call__(self, row: dict, index: int) -> dict:
        columns = self.columns
        image_id = row[columns.image_id] if columns.image_id else index
        where = f"{self.source}, split {self.split!r}, row {index} (image_id {image_id})"
        if columns.needs_header:
            width, height = _header_size(row[columns.image], where, self.split, self.findings)
        else:
            width, height = row[columns.width], row[columns.height]
        fields = [name for name in (columns.bbox, columns.category, columns.id, columns.area, columns.crowd) if name]
        source = _as_lists(row[columns.objects], fields)
        lengths = {name: len(values) for name, values in source.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{where}: lists of objects differ in length, {lengths}; every object needs every field.")
        objects: dict[str, list] = {"id": [], "bbox": [], "category": [], "area": [], "iscrowd": []}
        for position, (box, category) in enumerate(zip(source[columns.bbox], source[columns.category], strict=True)):
            place = f"{where}, object {position}"
            number = source[columns.id][position] if columns.id else self.next_id
            self.next_id += 1
            category = self._category(category, place)
            if category is None:
                continue
            if box is None or len(box) != 4:
                message = f"expected bbox as four numbers, got {box}; correct or remove the object."
                self.findings.error("corrupt annotation", place, message, self.split)
                continue
            given = to_xywh_px(box, self.bbox_format, width, height)
            box = self.policy(given, width, height, place)
            if box is None:
                continue
            area = source[columns.area][position] if columns.area else None
            objects["id"].append(number if isinstance(number, int) else self.next_id - 1)
            objects["bbox"].append(list(box))
            objects["category"].append(category)
            objects["area"].append(box[2] * box[3] if area is None else area)
            objects["iscrowd"].append(int(bool(source[columns.crowd][position])) if columns.crowd else 0)
        result = {"image_id": image_id, "width": width, "height": height, "objects": objects}
        return {"image": row[columns.image], **result} if columns.image in row else result

    def any_change(self, dataset: Dataset) -> bool:
        """Whether the policy would alter a box of a data set that has the schema; raises as the policy does."""
        trial = _RowReader(
            self.columns, self.label, self.split, self.source,
            BoxPolicy(self.policy.on_bad_box, self.split), self.findings, self.bbox_format,
        )  # fmt: skip
        for index, row in enumerate(dataset.remove_columns("image")):
            if trial(row, index)["objects"]["bbox"] != row["objects"]["bbox"]:
                return True
        self.policy.boxes = trial.policy.boxes
        return False

    def _category(self, value: Any, place: str) -> int | None:
        names = self.label.names
        if isinstance(value, str) and value in names:
            return names.index(value)
        if isinstance(value, int) and 0 <= value < len(names):
            return value
        message = (
            f"unknown class {value!r}, expected one of {names} (or 0 to {len(names) - 1}); correct class_names or data."
        )
        self.findings.error("unknown class", place, message, self.split)
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
    """(width, height) of the upright picture; (0, 0) where it cannot be read and findings are collected."""
    try:
        return upright_size(BytesIO(image["bytes"]) if image.get("bytes") else Path(image["path"]))
    except (*UNREADABLE, TypeError, AttributeError) as error:  # the last two: no picture in the row
        findings.error(
            "corrupt image", where, f"not a readable image ({error}); replace it or filter the row out.", split
        )
        return 0, 0
