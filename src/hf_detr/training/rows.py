"""The rows of a data set before the first step: counts, bad boxes and classes."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, IterableDataset

from ..data.box_policy import BoxPolicy
from ..data.schema import class_names
from ..data.targets import columns_of, read_targets, replace_objects
from ..data.transform import DetectionTransform


@dataclass(frozen=True)
class RowCounts:
    """Of one data set: images, objects, images without objects, and the objects of the fullest image."""

    images: int
    objects: int
    empty: int
    most: int
    bad_boxes: int = 0

    def __str__(self) -> str:
        return (
            f"{self.images:,} images, {self.objects:,} objects, {self.empty:,} images without, at most {self.most} an "
            "image"
        )


class ApplyBoxPolicy:
    """An augmentation that comes before all others: `BoxPolicy` with this `on_bad_box`, on the boxes of each row."""

    def __init__(self, on_bad_box: str):
        self.on_bad_box = on_bad_box

    def final_hw(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Images stay as large as they are."""
        return size_hw

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Row in, row out; `width` and `height` are the image's."""
        place = f"image_id {row.get('image_id')}"
        targets = read_targets(row, place).under(BoxPolicy(self.on_bad_box), row["width"], row["height"], place)
        columns = columns_of(row["objects"], place)
        return {**row, "objects": replace_objects(columns, targets.index, targets.boxes_xywh_px, targets.areas_px)}


def transform_of(dataset: Any) -> DetectionTransform | None:
    """The `DetectionTransform` that a data set was given by `with_transform`, if it was."""
    transform = dataset.format["format_kwargs"].get("transform") if isinstance(dataset, Dataset) else None
    return transform if isinstance(transform, DetectionTransform) else None


def with_closing(dataset: Any) -> tuple[Any, Any]:
    """A data set to train on, whose images are mixed with its own rows alone, whatever it was selected from; and the
    same with the augmentations of the last part of a training, None where that changes nothing."""
    transform = transform_of(dataset)
    if transform is None:
        return dataset, None
    if transform.mixes:
        transform = transform.with_rows(dataset.with_format(None))
        dataset = dataset.with_transform(transform)
    closing = transform.for_closing()
    return dataset, closing and dataset.with_transform(closing)


def raw_rows(dataset: Any, *columns: str) -> Dataset | None:
    """Those of the columns that there are, untransformed and without images; None for what is not of `datasets`."""
    if not isinstance(dataset, Dataset):
        return None
    return dataset.with_format(None).select_columns([name for name in columns if name in dataset.column_names])


def check_is_transformed(dataset: Any, name: str) -> None:
    """ValueError where the rows of a data set would reach the collator as they are."""
    plain = isinstance(dataset, Dataset) and dataset.format["type"] != "custom"
    # a stream does not know its columns any more, once it is transformed
    columns = dataset.column_names if plain or isinstance(dataset, IterableDataset) else None
    if columns is not None and "pixel_values" not in columns:
        raise ValueError(
            f"{name}: its rows have {columns} but no pixel_values; give it a transform, "
            f"{name}=transform_dataset(dataset, DetectionTransform(processor, augment='paper')), without augment to "
            "evaluate on."
        )


def count_rows(dataset: Any, name: str, on_bad_box: str) -> RowCounts | None:
    """Counts the rows of a `datasets` object in the schema, and looks at every box; None for other data sets.

    Raises ValueError naming the image of the first bad box under on_bad_box="error"; else warns with their number.
    """
    rows = raw_rows(dataset, "image_id", "width", "height", "objects")
    if rows is None or "objects" not in rows.column_names:
        return None
    sizes_known = {"width", "height"} <= set(rows.column_names)
    policy = BoxPolicy(on_bad_box, name)
    lengths = []
    for row in rows:
        place = f"{name}: image_id {row.get('image_id')}"
        targets = read_targets(row, place)
        lengths.append(len(targets))
        if sizes_known:
            targets.under(policy, row["width"], row["height"], place)
    policy.warn()
    return RowCounts(len(lengths), sum(lengths), lengths.count(0), max(lengths, default=0), policy.bad)


def with_box_policy(dataset: Dataset, on_bad_box: str) -> Dataset:
    """The same data set whose transform applies `BoxPolicy` first. ValueError for a transform that is not ours."""
    transform = transform_of(dataset)
    if transform is None:
        raise ValueError(
            f"on_bad_box={on_bad_box!r} needs rows with a DetectionTransform; with a transform of your own, load the "
            f"data by load_detection_dataset(..., on_bad_box={on_bad_box!r}) instead."
        )
    transform = copy.copy(transform)
    transform.augment = [ApplyBoxPolicy(on_bad_box), *transform.augment]
    return dataset.with_transform(transform)


def class_problem(dataset: Any, id2label: Mapping[int, str]) -> tuple[bool, str] | None:
    """What is wrong between the classes of the data and the model's: (whether it must not train, words), or None."""
    try:
        names = class_names(dataset)
    except (ValueError, AttributeError):
        return None  # not in the schema: nothing is known of its classes
    known = [str(id2label[index]) for index in sorted(id2label)]
    remedy = "make the model with id2label=hf_detr.data.schema.id2label(dataset)"
    if len(names) > len(known):
        return True, f"the data has {len(names)} classes and the model {len(known)}; {remedy}."
    for index, name in enumerate(names):
        if known[index] != name:
            return False, (
                f"class {index} is {name!r} in the data and {known[index]!r} in the model, which will learn the former "
                f"and say the latter; {remedy}."
            )
    return None
