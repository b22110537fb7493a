"""Unpadded images -> one batch, padded once, with a mask only where something is padding."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import default_collate


class DetectionCollator:
    """List of {"pixel_values": (C, h, w), "labels": dict} -> {"pixel_values": (B, C, H, W), "labels": [dict ...]}.

    H and W are the largest of the batch, rounded up to a multiple of `pad_to_multiple_of`, or `pad_size` = (height,
    width) in pixels (fixed shapes suit compilation). Padding is zeros at the bottom and right, after normalising, as
    in the original; `pixel_mask` (B, H, W) int64, 1 on image and 0 on padding, is there only if some image is
    padded: without it the model skips all masking. Labels are passed through: they are of the visible image.

    Raises ValueError for items without `pixel_values`, of different channels, or larger than `pad_size`.
    """

    def __init__(self, pad_to_multiple_of: int | None = None, pad_size: tuple[int, int] | None = None):
        if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
            raise ValueError(f"pad_to_multiple_of must be a positive number of pixels, got {pad_to_multiple_of}.")
        if pad_size is not None and (len(pad_size) != 2 or min(pad_size) < 1):
            raise ValueError(f"pad_size must be (height, width) in pixels, got {pad_size}.")
        if pad_size is not None and pad_to_multiple_of is not None:
            raise ValueError("give pad_size or pad_to_multiple_of, not both: a fixed size needs no rounding.")
        self.pad_to_multiple_of, self.pad_size = pad_to_multiple_of, pad_size

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The batch of these items."""
        for item in items:
            if "pixel_values" not in item:
                raise ValueError(
                    f"expected items with pixel_values, got {sorted(item)}; use dataset.with_transform("
                    "DetectionTransform(processor)), and with a Trainer set remove_unused_columns=False."
                )
        images = [_tensor(item["pixel_values"]) for item in items]
        labelled = [item for item in items if "labels" in item]
        if labelled and len(labelled) != len(items):
            raise ValueError(f"{len(labelled)} of {len(items)} items have labels; give labels to all or to none.")
        channels = sorted({image.shape[0] for image in images})
        if len(channels) != 1:
            raise ValueError(f"images of one batch have {channels} channels; set do_convert_rgb=True in the processor.")

        sizes_hw = [tuple(image.shape[-2:]) for image in images]
        height, width = self._canvas(sizes_hw)
        edges = [(0, width - w, 0, height - h) for h, w in sizes_hw]  # left, right, top, bottom
        images = [pad(image, edge) if any(edge) else image for image, edge in zip(images, edges, strict=True)]
        # torch's own stacks in shared memory where this is a data loader's worker: nothing is copied on its way out
        batch: dict[str, Any] = {"pixel_values": default_collate(images)}
        if any(map(any, edges)):
            ones = [torch.ones(size_hw, dtype=torch.int64, device=images[0].device) for size_hw in sizes_hw]
            batch["pixel_mask"] = default_collate([pad(one, edge) for one, edge in zip(ones, edges, strict=True)])
        if labelled:
            batch["labels"] = [{name: _tensor(value) for name, value in item["labels"].items()} for item in items]
        return batch

    def _canvas(self, sizes_hw: list[tuple[int, ...]]) -> tuple[int, int]:
        height, width = (max(side) for side in zip(*sizes_hw, strict=True))
        if self.pad_size is not None:
            if height > self.pad_size[0] or width > self.pad_size[1]:
                raise ValueError(
                    f"an image of {height} x {width} (height x width) does not fit pad_size {self.pad_size}; enlarge "
                    "it, or let the processor resize to fit."
                )
            return self.pad_size
        step = self.pad_to_multiple_of or 1
        return -(-height // step) * step, -(-width // step) * step


def _tensor(value: Any) -> Tensor:
    # a tensor stays where it is, and a list goes to the host, whatever the default device
    return value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")
