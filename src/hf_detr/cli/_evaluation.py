"""A model over a data set in the data set's classes, reading ahead of the model."""

from collections.abc import Iterator
from typing import Any

import torch
from datasets import Image
from tqdm import tqdm

from hf_detr.data.collator import DetectionCollator
from hf_detr.data.transform import DetectionTransform
from hf_detr.image_processing_detr import DetrImageProcessor
from hf_detr.modeling_detr import DetrForObjectDetection

from ._running import in_order, run_ahead, same_size_batches


class PredictInClasses:
    """A batch -> result dicts in the classes of the data set."""

    def __init__(self, model: DetrForObjectDetection, processor: DetrImageProcessor, class_of_label: dict[int, int]):
        self.model, self.processor = model, processor
        self.class_of_label = torch.full((model.config.num_labels,), -1)
        for label, index in class_of_label.items():
            self.class_of_label[label] = index

    def __call__(self, batch: dict) -> list[dict]:
        device = next(self.model.parameters()).device
        inputs = {
            name: batch[name].to(device, non_blocking=True) for name in ("pixel_values", "pixel_mask") if name in batch
        }
        with torch.inference_mode():
            outputs = self.model(**inputs)
        sizes_hw = torch.stack([label["orig_size"] for label in batch["labels"]])
        # no threshold: AP is made of the low scores too
        results = self.processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes_hw)
        for result in results:
            classes = self.class_of_label[result["labels"]]
            known = classes >= 0
            result |= {"labels": classes[known], "scores": result["scores"][known], "boxes": result["boxes"][known]}
        return results


def batches(
    dataset: Any, processor: DetrImageProcessor, batch_size: int, threads: int, bar: tqdm, pin: bool = False
) -> Iterator[dict]:
    """Batches of the model's inputs with the rows as targets; threads read ahead. `pin`: for copies to a GPU."""
    transform, collate = DetectionTransform(processor), DetectionCollator()

    def read(row: dict) -> tuple[dict, dict]:
        columns = transform({name: [value] for name, value in row.items()})
        target = {"image_id": row["image_id"], "objects": row["objects"]}
        return {name: values[0] for name, values in columns.items()}, target

    undecoded = dataset.cast_column("image", Image(decode=False))
    items = in_order(read, undecoded, threads, 2 * batch_size)

    def collated() -> Iterator[dict]:
        for batch in same_size_batches(items, batch_size, lambda item: item[0]["pixel_values"].shape):
            inputs = collate([item for item, _ in batch])
            if pin:
                inputs["pixel_values"] = inputs["pixel_values"].pin_memory()
            yield {**inputs, "targets": [target for _, target in batch]}

    for batch in run_ahead(collated()):
        bar.update(len(batch["targets"]))
        yield batch
