"""The protocol of an evaluator, and the one loop in which trainers, commands and examples evaluate."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from datasets import Dataset, IterableDataset
from torch import nn
from torch.utils.data import DataLoader

from ..data.collator import DetectionCollator
from ..data.schema import class_names
from ..data.streams import share_of_stream, useful_workers
from ..data.transform import TARGET_COLUMNS, DetectionTransform, transform_dataset
from .batches import CollateWithTargets, SameSizeBatches, check_image_ids, processed_sizes_hw, unpadded
from .coco import CocoEvaluator


class Evaluator(Protocol):
    """What the loops need; all evaluators have it."""

    def reset(self) -> None: ...

    def update(self, detections: Sequence[Mapping], targets: Sequence[Mapping]) -> None: ...

    def synchronize_between_processes(self) -> None: ...

    def compute(self) -> dict: ...

    def post_process(self, processor: Any, outputs: Any, target_sizes: Any, processed_sizes: Any) -> Sequence[Any]: ...


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
    evaluator: Evaluator | None = None,
    class_of_label: Mapping[int, int] | None = None,
    read: Callable[[Callable[[list[int]], dict], Iterable[list[int]]], Iterable[dict]] | None = None,
) -> Evaluator:
    """An evaluator that has seen every image of `dataset` (rows of the schema, or a stream of them that ends) once; ask
    it for `compute()`, `table()`.

    Targets are the rows themselves, so crowds count as COCO has it. Batches hold images of one size, so nothing is
    padded and the numbers are those of single images. Of several processes each takes its share of the images, and all
    get the numbers of all; every one must call this, with the bare model: a data-parallel wrapping would wait for the
    others in each forward pass, and shares differ in length. The model is left in the mode it was in.

    `on_batch` is called after each batch; `evaluator` is one of another kind or with settings of its own (default: box
    AP; `EvaluatorGroup` for several); `class_of_label` {the model's
    label: the data's class id} leaves out detections of other labels; `read(function, batches of indices)` may read
    ahead in threads, in place of the data loader's `num_workers`, of what is no stream. Raises ValueError for outputs
    that are not finite, and for images of a stream that share an id.
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
        columns = [name for name in TARGET_COLUMNS if name in dataset.column_names]
        rows = dataset.with_format(None).select_columns(columns)
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
    device = next(model.parameters(), torch.empty(0)).device  # an exported model has none

    def batches() -> Iterator[dict]:
        for batch in loaded:
            for positions, part in unpadded(batch):
                yield {**part, "targets": [batch["targets"][position] for position in positions]}
            if on_batch is not None:
                on_batch()

    def predict(batch: Mapping) -> list[dict]:
        outputs = model(pixel_values=batch["pixel_values"].to(device, non_blocking=True))
        check_finite(outputs, [row["image_id"] for row in batch["targets"]])
        original, processed = (
            torch.stack([label[name] for label in batch["labels"]]) for name in ("orig_size", "size")
        )
        results = evaluator.post_process(processor, outputs, original, processed)
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


def check_finite(outputs: Any, images: Sequence | None = None) -> None:
    """Raises ValueError where logits, boxes or masks hold a NaN or an infinity, with the first of the `images`."""
    parts = [outputs.logits, outputs.pred_boxes, getattr(outputs, "pred_masks", None)]
    finite = torch.stack([part.isfinite().flatten(1).all(1) for part in parts if part is not None]).all(0)
    if not finite.all():
        bad = [index for index, good in enumerate(finite.tolist()) if not good]
        name = f"image {images[bad[0]]}" if images is not None else f"image {bad[0]} of the batch"
        raise ValueError(
            f"{name}: the model's outputs hold a NaN or an infinity ({len(bad)} of {len(finite)} images of the batch), "
            "which is no detection; look for diverged weights, or use float32 or bfloat16 in place of float16."
        )


class EvaluatorGroup:
    """Several evaluators in one pass, by name.

    EvaluatorGroup(box=CocoEvaluator(names), mask=CocoEvaluator(names, iou_type="segm"))
    """

    def __init__(self, **evaluators: Any):
        self.evaluators = evaluators

    def __len__(self) -> int:
        return min(map(len, self.evaluators.values()), default=0)

    def reset(self) -> None:
        for evaluator in self.evaluators.values():
            evaluator.reset()

    def update(self, results: Sequence[Mapping[str, Any]], targets: Sequence[Mapping]) -> None:
        """Take in a batch: {name: result} and one target an image."""
        for name, evaluator in self.evaluators.items():
            evaluator.update([result[name] for result in results], targets)

    def synchronize_between_processes(self) -> None:
        for evaluator in self.evaluators.values():
            evaluator.synchronize_between_processes()

    def compute(self) -> dict[str, dict]:
        """{name: metrics}."""
        return {name: evaluator.compute() for name, evaluator in self.evaluators.items()}

    def summary(self) -> dict[str, float]:
        """{name_metric: value}, flat."""
        return {
            f"{name}_{metric}": value
            for name, evaluator in self.evaluators.items()
            for metric, value in evaluator.summary().items()
        }

    def table(self) -> str:
        """The tables, one below the other."""
        return "\n\n".join(f"{name}\n{evaluator.table()}" for name, evaluator in self.evaluators.items())

    def post_process(
        self, processor: Any, outputs: Any, target_sizes: Any, processed_sizes: Any
    ) -> list[dict[str, Any]]:
        """{name: result} of each image."""
        arguments = (processor, outputs, target_sizes, processed_sizes)
        results = [evaluator.post_process(*arguments) for evaluator in self.evaluators.values()]
        return [dict(zip(self.evaluators, one, strict=True)) for one in zip(*results, strict=True)]


def _in_classes(result: Mapping[str, Any], class_of_label: Mapping[int, int]) -> dict[str, Any]:
    """What was found of known labels, as the data set numbers its classes."""
    if not isinstance(result, Mapping):
        raise TypeError("class_of_label is for detections and segments; a map of classes cannot leave pixels out.")
    if "segments_info" in result:
        known = [
            {**info, "label_id": class_of_label[info["label_id"]]}
            for info in result["segments_info"]
            if info["label_id"] in class_of_label
        ]
        ids = torch.tensor([info["id"] for info in known], dtype=torch.int64)
        segmentation = result["segmentation"].where(torch.isin(result["segmentation"].long(), ids), 0)
        return {"segmentation": segmentation, "segments_info": known}
    if "labels" not in result:
        return {name: _in_classes(one, class_of_label) for name, one in result.items()}
    classes = torch.tensor([class_of_label.get(label, -1) for label in result["labels"].tolist()], dtype=torch.int64)
    known = classes >= 0
    kept = {"labels": classes[known], "scores": result["scores"][known], "boxes": result["boxes"][known]}
    if "masks" in result:
        kept["masks"] = [mask for mask, keep in zip(result["masks"], known.tolist(), strict=True) if keep]
    return kept
