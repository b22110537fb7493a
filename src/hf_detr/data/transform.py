"""From rows of the schema to what the model takes, one image at a time and unpadded: the collator pads."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
from datasets import Dataset, Image, IterableDataset
from PIL import Image as PILImage
from PIL import ImageOps

from ..image_processing.loading import to_eight_bits
from ..image_processing.settings import resized_hw
from .augmentation import PaperAugmentation, paper_augmentation
from .formats.base import UNREADABLE
from .masks import boxes_from_masks
from .random_numbers import between
from .strong_augmentation import FlipAndResize, ImageAugmentation, StrongAugmentation
from .targets import columns_of, read_targets, replace_objects

Augment = Callable[..., dict[str, Any]]

# of a row: what it is evaluated by
TARGET_COLUMNS = ("image_id", "width", "height", "objects")

_REMEDY = "replace the file or leave the row out (hf-detr check lists all such images)"


class DetectionTransform:
    """Batch of rows -> {"pixel_values": [(C, h, w) float32 ...], "labels": [label dict ...]}; for `with_transform`.

        train = dataset["train"].with_transform(DetectionTransform(processor, augment="paper"))

    `processor` is a DetrImageProcessor; it is called image by image without padding, so that labels are those of
    the visible image and padding happens once, in `DetectionCollator`. `augment` changes rows before: "paper"
    (`augmentation.PaperAugmentation` at the processor's own size), "flip" (every second image mirrored), "strong"
    (`strong_augmentation.StrongAugmentation`, for few images), a callable from row to row ({image, image_id, width,
    height, objects}), or several in turn. An augmentation may have these attributes:
        resizes: true: images have their final size, and the processor does not resize again unless its size is exact;
        mixes: true: it is called with a row and a function that gives another row of the data set, as random and as
            augmented by those before it; `transform_dataset` tells of which data set;
        closing: what takes its place in `for_closing`, None for nothing.

    With `masks` the labels have masks (T, h, w): those of the objects are decoded before the augmentations, which find
    arrays (height, width) of 0 and 1 in `objects["segmentation"]`, and crowds, which are not trained on, leave. With
    `boxes_from_masks` boxes are made anew, tight around what the augmentations leave of the masks, and objects of which
    they leave nothing leave too. Without `masks` nothing is decoded.

    Rows without `objects` (a data set to predict on) give no labels. Raises ValueError naming image_id and file for a
    image that cannot be decoded or that has not the size its row says: boxes would be wrong. With datasets whose
    image column decodes by itself the former is raised by `datasets`, without the name: `transform_dataset` avoids it.
    """

    def __init__(
        self,
        processor: Any,
        augment: str | Augment | Sequence[Augment] | None = None,
        masks: bool = False,
        boxes_from_masks: bool = False,
    ):
        if boxes_from_masks and not masks:
            raise ValueError("boxes_from_masks needs masks=True: boxes are made from the masks of the objects.")
        self.masks, self.boxes_from_masks = masks, boxes_from_masks
        size = dict(processor.size)
        self.processor = processor
        self.augment = _augmentations(augment, size)
        self.rows: Sequence[Mapping[str, Any]] | None = None  # to mix images with
        exact = size.get("height") is not None and size.get("width") is not None
        self.do_resize = processor.do_resize and (exact or not any(getattr(a, "resizes", False) for a in self.augment))

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list]:
        """Columns of the rows in, lists of tensors and label dicts out."""
        if "image" not in batch:
            raise ValueError(
                f"the rows have no column 'image', only {list(batch)}; select whole rows, and with a Trainer set "
                "remove_unused_columns=False."
            )
        result: dict[str, list] = {"pixel_values": []}
        if "objects" in batch:
            result["labels"] = []
        for index in range(len(batch["image"])):
            row = {name: values[index] for name, values in batch.items()}
            encoded = self._encode(row)
            result["pixel_values"].append(encoded["pixel_values"][0])
            if "objects" in batch:
                result["labels"].append(dict(encoded["labels"][0]))
        return result

    @property
    def tells_final_hw(self) -> bool:
        """Whether every augmentation has a method `final_hw(size_hw)`, which draws its random numbers."""
        return all(hasattr(augment, "final_hw") for augment in self.augment)

    def final_hw(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """(height, width) that an image of `size_hw` will have, with the random numbers it will be augmented with."""
        for augment in self.augment:
            size_hw = augment.final_hw(size_hw)
        return resized_hw(size_hw, dict(self.processor.size)) if self.do_resize else size_hw

    @property
    def mixes(self) -> bool:
        """Whether an augmentation needs other rows beside its own."""
        return any(getattr(augment, "mixes", False) for augment in self.augment)

    def with_rows(self, rows: Sequence[Mapping[str, Any]]) -> "DetectionTransform":
        """The same transform, whose augmentations mix images with `rows` of the schema, decoded or not."""
        transform = copy.copy(self)
        transform.rows = rows
        return transform

    def for_closing(self) -> "DetectionTransform | None":
        """The transform for the last part of a training, without augmentations that are to end before it; None where
        there are none such. See `DetrTrainingArguments.augment_until`."""
        if not any(hasattr(augment, "closing") for augment in self.augment):
            return None
        transform = copy.copy(self)
        transform.augment = [
            one for one in (getattr(augment, "closing", augment) for augment in self.augment) if one is not None
        ]
        return transform

    def _encode(self, row: dict[str, Any]) -> Mapping[str, Any]:
        options = {"do_pad": False, "do_resize": self.do_resize, "return_tensors": "pt"}
        if "objects" not in row:
            return self.processor(images=decode_image(row, check_size=True), **options)
        row = self._augmented(row, len(self.augment))
        if self.boxes_from_masks:
            row["objects"] = _with_boxes_of_masks(row)
        # COCO's form, which stock transformers' processor reads too
        annotation = {"image_id": row["image_id"], "annotations": read_targets(row, _place(row)).as_coco()}
        options |= {"return_segmentation_masks": True} if self.masks else {}
        return self.processor(images=row["image"], annotations=annotation, **options)

    def _augmented(self, row: Mapping[str, Any], count: int) -> dict[str, Any]:
        """A row, decoded, after the first `count` augmentations."""
        row = {**row, "image": decode_image(row, check_size=True), "objects": columns_of(row["objects"], _place(row))}
        if self.masks:
            row["objects"] = _with_masks(row)
        else:
            row["objects"].pop("segmentation", None)
        for place, augment in enumerate(self.augment[:count]):
            given = [partial(self._other, place)] if getattr(augment, "mixes", False) else []
            # nothing reads the image between the last augmentation and the processor, which takes tensors
            last = place + 1 == len(self.augment) and isinstance(augment, PaperAugmentation | ImageAugmentation)
            row = augment(row, *given, **({"as_tensor": True} if last else {}))
            _check_augmented(row, augment)
        return row

    def _other(self, count: int) -> dict[str, Any]:
        """A random row, after the first `count` augmentations."""
        if self.rows is None:
            raise ValueError(
                f"augment {self.augment[count]!r} mixes images with others of the data set, which this transform does "
                "not know; use transform_dataset(dataset, transform) in place of with_transform."
            )
        return self._augmented(self.rows[between(0, len(self.rows) - 1)], count)


def transform_dataset(dataset: Any, transform: DetectionTransform) -> Any:
    """A data set (or dict of splits) whose rows come out transformed, decoding errors naming the image.

    Map-style data sets decode and transform when a row is asked for; streams do so as they pass, and keep beside it
    what a row is evaluated by, unless an augmentation changes that. Augmentations that mix images take them from the
    data set given here (a `DetrTrainer`: from its train_dataset), which must be no stream: ValueError.
    """
    if isinstance(dataset, dict):
        return type(dataset)({split: transform_dataset(one, transform) for split, one in dataset.items()})
    undecoded = dataset.cast_column("image", Image(decode=False))
    if isinstance(dataset, Dataset):
        rows = undecoded.with_format(None)
        return undecoded.with_transform(transform.with_rows(rows) if transform.mixes else transform)
    if isinstance(dataset, IterableDataset):
        if transform.mixes:
            raise ValueError(
                f"{transform.augment} mix images with others, and a stream has only the next one; use augment='paper', "
                "or load the data without streaming."
            )
        kept = () if transform.augment else TARGET_COLUMNS
        columns = [name for name in undecoded.features or undecoded._resolve_features().features if name not in kept]
        return undecoded.map(_OfOneRow(transform), remove_columns=columns)
    raise TypeError(f"expected a datasets object, got {type(dataset).__name__}; use load_detection_dataset.")


class _OfOneRow:
    """A transform for `IterableDataset.map`, not batched: `datasets` resumes a batch by mapping all of it again, which
    would draw random numbers twice."""

    def __init__(self, transform: DetectionTransform):
        self.transform = transform

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        batch = self.transform({name: [value] for name, value in row.items()})
        return {name: value for name, [value] in batch.items()}


def _augmentations(augment: Any, size: dict[str, int | None]) -> list[Augment]:
    if augment is None:
        return []
    if augment == "flip":
        return [FlipAndResize(size)]
    if augment == "strong":
        return [StrongAugmentation(size)]
    if augment == "paper":
        edges = [
            size.get(name) for name in ("shortest_edge", "longest_edge", "height", "width", "max_height", "max_width")
        ]
        shortest, longest, *sides = edges
        shortest = shortest or min(side for side in sides if side)
        return [paper_augmentation(shortest, longest and max(longest, shortest))]
    several = list(augment) if isinstance(augment, (list, tuple)) else [augment]
    if not all(callable(one) for one in several):
        raise TypeError(
            f"augment must be 'paper', 'flip', 'strong', a callable from row to row or several, not {augment!r}."
        )
    return several


def _place(row: Mapping[str, Any], image: Any = None) -> str:
    path = image.get("path") if isinstance(image, Mapping) else getattr(image, "filename", None)
    return f"image_id {row.get('image_id')}" + (f" ({path})" if path else "")


def decode_image(row: Mapping[str, Any], check_size: bool = False) -> Any:
    """The upright image of a row, decoded from its bytes or path where `datasets` has not.

    Raises ValueError naming image_id and file where that fails and, with `check_size`, for an image that is not
    `width` x `height` of the row.
    """
    image = row["image"]
    place = _place(row, image)
    if isinstance(image, Mapping):
        try:
            opened = PILImage.open(BytesIO(image["bytes"]) if image.get("bytes") else image["path"])
            opened.load()
        except FileNotFoundError as error:
            raise ValueError(f"{place}: no such file; {_REMEDY}.") from error
        except UNREADABLE as error:
            raise ValueError(f"{place}: the image cannot be decoded ({error}); {_REMEDY}.") from error
        image = ImageOps.exif_transpose(opened)
    if isinstance(image, PILImage.Image):
        image = to_eight_bits(image, place)
    if check_size and isinstance(image, PILImage.Image) and row.get("width") and row.get("height"):
        claimed = (row["width"], row["height"])
        if image.size != claimed:
            raise ValueError(
                f"{place}: the image is {image.width} x {image.height} pixels but its row says "
                f"{claimed[0]} x {claimed[1]}, so its boxes cannot be trusted; correct one of the two."
            )
    return image


def _with_masks(row: Mapping[str, Any]) -> dict[str, list]:
    """The objects of a row, crowds left out, with decoded masks."""
    objects, size_hw = row["objects"], (row["image"].height, row["image"].width)
    targets = read_targets(row, _place(row))
    targets = targets.select(~targets.crowds)
    kept = {name: [values[number] for number in targets.index] for name, values in objects.items()}
    return {**kept, "segmentation": list(targets.masks(size_hw, _place(row)))}


def _with_boxes_of_masks(row: Mapping[str, Any]) -> dict[str, list]:
    """The objects of a row with the boxes and areas of their masks, those with empty masks left out."""
    objects = columns_of(row["objects"], _place(row))
    if not objects["segmentation"]:
        return objects
    masks = np.stack(objects["segmentation"])
    kept = np.flatnonzero(masks.any(axis=(1, 2)))
    return replace_objects(objects, kept, boxes_from_masks(masks[kept]), masks[kept].sum(axis=(1, 2), dtype=np.float64))


def _check_augmented(row: Any, augment: Augment) -> None:
    name = getattr(augment, "__name__", type(augment).__name__)
    if not isinstance(row, Mapping) or not {"image", "image_id", "objects"} <= set(row):
        got = list(row) if isinstance(row, Mapping) else type(row).__name__
        raise ValueError(f"augment {name} must return a row with image, image_id and objects, got {got}.")
    columns_of(row["objects"], f"{_place(row)}: after augment {name}")
