"""`--batch-size auto`: the most images that a training step of a GPU holds, tried before the training."""

import copy

import torch
from accelerate.utils import find_executable_batch_size
from torch import nn

from hf_detr.evaluation.tasks import has_mask_head
from hf_detr.training import parameter_groups

LARGEST = 16  # images; more a step are fewer steps, and a small data set wants steps
ON_CPU = 4  # there the system ends a process that takes too much, and no error says so beforehand


def find_batch_size(
    model: nn.Module,
    size_hw: tuple[int, int],
    objects: int,
    device: torch.device,
    dtype: torch.dtype | None = None,
    largest: int = LARGEST,
) -> int:
    """The most images of this size with so many objects each, at most `largest`, that a step of `model` on `device`
    takes; `dtype` is that of autocast, None for none. The model stays as it is.

    Raises ValueError where not even one fits.
    """

    @find_executable_batch_size(starting_batch_size=largest)
    def fits(batch_size: int) -> int:
        try_step(model, batch_size, size_hw, objects, device, dtype)
        return batch_size

    try:
        return fits()
    except RuntimeError as error:
        if "No executable batch size" not in str(error):
            raise
        height, width = size_hw
        raise ValueError(
            f"--batch-size auto: not even one image of {width} x {height} pixels fits into the memory of {device}; "
            "lower --image-size, or take --device cpu."
        ) from error


def try_step(
    model: nn.Module,
    batch_size: int,
    size_hw: tuple[int, int],
    objects: int,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> None:
    """One whole step of a copy of `model` on grey images: forward, backward, AdamW."""
    attempt = copy.deepcopy(model).to(device).train()
    optimizer = torch.optim.AdamW(parameter_groups(attempt, 0.0, 0.0))
    masks = {"masks": torch.ones(objects, *size_hw, dtype=torch.uint8, device=device)} if has_mask_head(attempt) else {}
    boxes_cxcywh = torch.full((objects, 4), 0.5, device=device)
    labels = [
        {"class_labels": torch.zeros(objects, dtype=torch.int64, device=device), "boxes": boxes_cxcywh, **masks}
        for _ in range(batch_size)
    ]
    pixel_values = torch.zeros(batch_size, 3, *size_hw, device=device)
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        loss = attempt(pixel_values=pixel_values, labels=labels).loss
    loss.backward()
    optimizer.step()
