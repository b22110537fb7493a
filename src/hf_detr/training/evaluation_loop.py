"""COCO AP of a model over a data loader: the one way that the trainers, the examples and the commands share."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..evaluation import CocoEvaluator, evaluate_detections


def evaluate_model(
    model: nn.Module,
    processor: Any,
    batches: Iterable[Mapping],
    evaluator: CocoEvaluator,
    on_batch: Callable[[], None] | None = None,
) -> dict:
    """`evaluator.compute()` over all batches, and over all processes under torch.distributed.

    `batches`: dicts with pixel_values, labels (see `CocoEvaluator.update`; crowds are dropped there) and, where images
    are padded, pixel_mask, on any device. With several processes each brings its own share of the images, which may
    differ in size; pass the model itself then, not its data-parallel wrapping, which waits for the others in every
    forward pass. `on_batch` is called after each batch. The model is left in the mode it was in.
    """
    device = next(model.parameters()).device
    was_training = model.training

    def predict(batch: Mapping) -> list[dict]:
        mask = batch.get("pixel_mask")
        outputs = model(
            pixel_values=batch["pixel_values"].to(device, non_blocking=True),
            pixel_mask=None if mask is None else mask.to(device, non_blocking=True),
        )
        sizes_hw = torch.stack([label["orig_size"] for label in batch["labels"]])
        # no threshold: AP is made of the low scores too
        detections = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes_hw)
        if on_batch is not None:
            on_batch()
        return detections

    model.eval()
    try:
        with torch.no_grad():
            return evaluate_detections(predict, batches, evaluator)
    finally:
        model.train(was_training)
