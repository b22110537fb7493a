"""COCO AP of a model on a data set: one way for the trainers, the examples and the commands."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader

from ..data.collator import DetectionCollator
from ..data.schema import class_names
from ..data.transform import DetectionTransform, transform_dataset
from ..evaluation import CocoEvaluator, evaluate_detections


def evaluate_model(
    model: nn.Module,
    processor: Any,
    dataset: Dataset,
    *,
    batch_size: int = 8,
    num_workers: int = 0,
    process_index: int = 0,
    num_processes: int = 1,
    on_batch: Callable[[], Any] | None = None,
) -> CocoEvaluator:
    """An evaluator that has seen every image of `dataset` (rows of the schema) once; ask it for `compute()`, `table()`.

    Targets are the rows themselves, so crowds count as COCO has it. Of several processes each takes its share of the
    images, and all get the numbers of all; every one must call this, with the bare model: a data-parallel wrapping
    would wait for the others in each forward pass, and shares differ in length. `on_batch` is called after each batch.
    The model is left in the mode it was in.
    """
    # not dataset.shard: it refuses more processes than images
    share = dataset.select(range(process_index, len(dataset), num_processes)) if num_processes > 1 else dataset
    loader = DataLoader(
        transform_dataset(share, DetectionTransform(processor)),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=DetectionCollator(),
        generator=torch.Generator(),  # so that evaluating draws none of the training's random numbers
    )
    targets = {row["image_id"]: row for row in share.select_columns(["image_id", "objects"])}
    device = next(model.parameters()).device

    def batches() -> Iterator[dict]:
        for batch in loader:
            yield {**batch, "targets": [targets[int(label["image_id"])] for label in batch["labels"]]}
            if on_batch is not None:
                on_batch()

    def predict(batch: dict) -> list[dict]:
        inputs = {name: batch[name].to(device) for name in ("pixel_values", "pixel_mask") if name in batch}
        sizes_hw = torch.stack([label["orig_size"] for label in batch["labels"]])
        # no threshold: AP is made of the low scores too
        return processor.post_process_object_detection(model(**inputs), threshold=0.0, target_sizes=sizes_hw)

    evaluator = CocoEvaluator(class_names(dataset))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            evaluate_detections(predict, batches(), evaluator, targets_key="targets")
    finally:
        model.train(was_training)
    return evaluator
