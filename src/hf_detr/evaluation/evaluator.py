"""The protocol of an evaluator, and the one loop in which trainers, commands and examples evaluate."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..data.collator import DetectionCollator
from ..data.schema import class_names
from ..data.streams import share_of_stream, useful_workers
from ..data.transform import DetectionTransform, transform_dataset
from .batches import CollateWithTargets, SameSizeBatches, check_image_ids, processed_sizes_hw, unpadded
from .coco import CocoEvaluator


class Evaluator(Protocol):
    """What the loop needs; `CocoEvaluator` has it."""

    def reset(self) -> None: ...

    def update(self, detections: Sequence[Mapping], targets: Sequence[Mapping]) -> None: ...

    def synchronize_between_processes(self) -> None: ...

    def compute(self) -> dict: ...


def evaluate_detections(
    predict: Callable[[Mapping], Sequence[Mapping]],
    batches: Iterable[Mapping],
    evaluator: Evaluator,
    targets_key: str = "labels",
) -> dict:
    """Feed every batch through `predict`; returns `evaluator.compute()` over all processes. The evaluator starts empty.

    `predict(batch)` gives one result dict (scores, labels, boxes xyxy px) an image; it alone knows the model, the
    device, and that gradients are off. `batch[targets_key]` are the targets `Evaluator.update` takes; a batch without
    them is only predicted. Under torch.distributed every process must call this, with batches of its own share of the
    images.
    """
    evaluator.reset()
    for batch in batches:
        detections = predict(batch)
        if batch.get(targets_key) is not None:
            evaluator.update(detections, batch[targets_key])
    evaluator.synchronize_between_processes()
    return evaluator.compute()


def evaluate_model(
    model: nn.Module,
    processor: Any,
    dataset: Dataset | IterableDataset,
    *,
    batch_size: int = 8,
    num_workers: int = 0,
    process_index: int = 0,
    num_processes: int = 1,
    on_batch: Callable[[], Any] | None = None,
    evaluator: CocoEvaluator | None = None,
    class_of_label: Mapping[int, int] | None = None,
    read: Callable[[Callable[[list[int]], dict], Iterable[list[int]]], Iterable[dict]] | None = None,
) -> CocoEvaluator:
    """An evaluator that has seen every image of `dataset` (rows of the schema, or a stream of them that ends) once; ask
    it for `compute()`, `table()`.

    Targets are the rows themselves, so crowds count as COCO has it. Batches hold images of one size, so nothing is
    padded and the numbers are those of single images. Of several processes each takes its share of the images, and all
    get the numbers of all; every one must call this, with the bare model: a data-parallel wrapping would wait for the
    others in each forward pass, and shares differ in length. The model is left in the mode it was in.

    `on_batch` is called after each batch; `evaluator` is one with settings of its own; `class_of_label` {the model's
    label: the data's class id} leaves out detections of other labels; `read(function, batches of indices)` may read
    ahead in threads, in place of the data loader's `num_workers`. Raises ValueError for outputs that are not finite.
    """
    transform = DetectionTransform(processor)
    samples, collate = transform_dataset(dataset, transform), DetectionCollator()
    # a generator of its own, so that evaluating draws none of the training's random numbers
    options = {"num_workers": num_workers, "collate_fn": collate, "generator": torch.Generator()}
    streams = isinstance(dataset, IterableDataset)
    if streams:
        samples = share_of_stream(samples, process_index, num_processes)
        options |= {"collate_fn": CollateWithTargets(collate), "num_workers": useful_workers(samples, num_workers)}
        loaded: Iterable[dict] = DataLoader(samples, batch_size=batch_size, **options)
    else:
        rows = dataset.with_format(None).select_columns(["image_id", "objects"])
        sizes_hw = processed_sizes_hw(dataset, transform)
        share = SameSizeBatches(len(dataset), batch_size, sizes_hw, process_index, num_processes)
        if read is None:
            loaded = DataLoader(samples, batch_sampler=share, **options)
        else:
            loaded = read(lambda indices: collate([samples[index] for index in indices]), share)
        loaded = (
            {**batch, "targets": [rows[index] for index in indices]}
            for indices, batch in zip(share, loaded, strict=True)
        )
    device = next(model.parameters()).device

    def batches() -> Iterator[dict]:
        for batch in loaded:
            for positions, part in unpadded(batch):
                yield {**part, "targets": [batch["targets"][position] for position in positions]}
            if on_batch is not None:
                on_batch()

    def predict(batch: Mapping) -> list[dict]:
        outputs = model(pixel_values=batch["pixel_values"].to(device, non_blocking=True))
        sizes_hw = torch.stack([label["orig_size"] for label in batch["labels"]])
        results = finite_detections(processor, outputs, sizes_hw, [row["image_id"] for row in batch["targets"]])
        return results if class_of_label is None else [_in_classes(result, class_of_label) for result in results]

    evaluator = CocoEvaluator(class_names(dataset)) if evaluator is None else evaluator
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            evaluate_detections(predict, batches(), evaluator, targets_key="targets")
    finally:
        model.train(was_training)
    if streams:
        check_image_ids(evaluator.num_duplicates)
    return evaluator


def finite_detections(
    processor: Any, outputs: Any, sizes_hw: Any, images: Sequence | None = None, threshold: float = 0.0
) -> list[dict[str, Tensor]]:
    """`post_process_object_detection` of finite outputs; without a threshold, for AP is made of the low scores too.

    Raises ValueError where logits or boxes hold a NaN or an infinity, with the first of the `images` concerned.
    """
    finite = outputs.logits.isfinite().flatten(1).all(1) & outputs.pred_boxes.isfinite().flatten(1).all(1)
    if not finite.all():
        bad = [index for index, good in enumerate(finite.tolist()) if not good]
        name = f"image {images[bad[0]]}" if images is not None else f"image {bad[0]} of the batch"
        raise ValueError(
            f"{name}: the model's outputs hold a NaN or an infinity ({len(bad)} of {len(finite)} images of the batch), "
            "which is no detection; look for diverged weights, or use float32 or bfloat16 in place of float16."
        )
    return processor.post_process_object_detection(outputs, threshold=threshold, target_sizes=sizes_hw)


def _in_classes(result: Mapping[str, Tensor], class_of_label: Mapping[int, int]) -> dict[str, Tensor]:
    """The detections of known labels, as the data set numbers its classes."""
    classes = torch.tensor([class_of_label.get(label, -1) for label in result["labels"].tolist()], dtype=torch.int64)
    known = classes >= 0
    return {"labels": classes[known], "scores": result["scores"][known], "boxes": result["boxes"][known]}
