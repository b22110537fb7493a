"""Batches of images of one size, so that evaluation pads nothing: beside padding, an image's detections differ."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler

from ..data.transform import TARGET_COLUMNS, DetectionTransform

Size = tuple[int, int]


class SameSizeBatches(Sampler[list[int]]):
    """The batches of one process, each of images of one size; together, the processes see each image once.

    `sizes_hw`: (height, width) of each processed image; None where they are not known: batches in order, for
    `unpadded` to divide. With `even`, a process whose share ends early repeats an image until the longest share has
    ended, since model parallelism needs every process in every forward pass: `is_extra(step)` tells those batches.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        sizes_hw: Sequence[Size] | None = None,
        process_index: int = 0,
        num_processes: int = 1,
        even: bool = False,
    ):
        if sizes_hw is None and even:  # dividing a batch later would make the processes' forward passes unequal
            batch_size = 1
        groups: dict[Size | None, list[int]] = {}
        for index in range(num_images):
            groups.setdefault(None if sizes_hw is None else tuple(sizes_hw[index]), []).append(index)
        batches = []
        for group in groups.values():
            size = max(1, min(batch_size, -(-len(group) // num_processes)))  # so that few images still occupy everyone
            batches += [group[start : start + size] for start in range(0, len(group), size)]
        batches.sort(key=lambda batch: batch[0])
        self.batches = batches[process_index::num_processes]
        self.num_own = len(self.batches)
        if even:
            longest = -(-len(batches) // num_processes)
            self.batches += [self.batches[-1][-1:] if self.batches else [0]] * (longest - self.num_own)

    def is_extra(self, step: int) -> bool:
        """Whether the batch of this number only accompanies those of the other processes."""
        return step >= self.num_own

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


class CollateWithTargets:
    """A collator for a stream to evaluate on: its batch, and as `targets` the rows' own image_id and objects, where
    `transform_dataset` has left them there; labels lack the crowds."""

    def __init__(self, collate: Callable[[Sequence[Mapping]], Mapping[str, Any]]):
        self.collate = collate

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The batch of these rows."""
        batch = dict(self.collate(rows))
        if all("objects" in row for row in rows):
            batch["targets"] = [{name: row[name] for name in TARGET_COLUMNS if name in row} for row in rows]
        return batch


def check_image_ids(num_duplicates: int) -> None:
    """ValueError for a stream whose rows have not each an id of their own, which nobody could tell beforehand."""
    if num_duplicates:
        raise ValueError(
            f"{num_duplicates:,} images of the stream have the image_id of another and were not counted; give each row "
            "its own image_id before it is divided among processes and workers."
        )


def processed_sizes_hw(rows: Any, transform: DetectionTransform | None) -> list[Size] | None:
    """(height, width) of each image after `transform`, from the columns `height` and `width`.

    None where a column or the transform's method `final_hw` is missing. Only for transforms that draw no random
    numbers.
    """
    if transform is None or not isinstance(rows, Dataset) or not transform.tells_final_hw:
        return None
    if not {"height", "width"} <= set(rows.column_names):
        return None
    rows = rows.with_format(None).select_columns(["height", "width"])
    known: dict[Size, Size] = {}
    sizes = list(zip(rows["height"], rows["width"], strict=True))
    for size in set(sizes):
        known[size] = tuple(transform.final_hw(size))
    return [known[size] for size in sizes]


def unpadded(batch: dict[str, Any]) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """A batch of the collator as batches of one image size without padding, each with its images' positions in it.

    Padding is at the right and the bottom, where `pixel_mask` (B, H, W) is 0.
    """
    pixel_values, mask = batch["pixel_values"], batch.get("pixel_mask")
    if mask is None:
        yield list(range(len(pixel_values))), batch
        return
    heights, widths = mask.amax(2).sum(1).tolist(), mask.amax(1).sum(1).tolist()
    groups: dict[Size, list[int]] = {}
    for position, (height, width) in enumerate(zip(heights, widths, strict=True)):
        groups.setdefault((int(height), int(width)), []).append(position)
    for (height, width), positions in groups.items():
        part = {"pixel_values": pixel_values[torch.tensor(positions), :, :height, :width].contiguous()}
        if "labels" in batch:
            part["labels"] = [batch["labels"][position] for position in positions]
        yield positions, part
