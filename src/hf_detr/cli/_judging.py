"""How `export` and `benchmark` judge a model in other formats: by the number of `hf-detr evaluate`."""

import argparse
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from hf_detr.data.loading import load_detection_dataset
from hf_detr.data.schema import class_names
from hf_detr.data.transform import decode_image
from hf_detr.evaluation import evaluator_of, task_of
from hf_detr.evaluation.tasks import BEST_BY, IN_WORDS

from ._arguments import data_options
from ._errors import about
from .evaluate import know_stuff, load_split, match_classes, measure


class Judge:
    """A split of the data that is named in `args`, and what models are judged by on it.

    Images pass one at a time, as they are used, since what int8 makes of an image depends on the batch.

    Attributes:
        split: its name; `dataset`: its rows, the first `args.limit` of them.
        metric: the name of the number in metrics; `in_words`: what people call it.
    """

    def __init__(self, args: argparse.Namespace, model: nn.Module, processor: Any):
        self.args, self.processor = args, processor
        self.split, dataset = load_split(args)
        self.dataset = dataset.select(range(min(args.limit or len(dataset), len(dataset))))
        names = class_names(dataset)
        self._class_of_label = match_classes(model.config.id2label, names)
        task = task_of(model, dataset)
        if task == "panoptic":
            know_stuff(processor, model, dataset, self._class_of_label)
        self.metric, self.in_words = BEST_BY[task], IN_WORDS[task]
        self._evaluator = lambda: evaluator_of(task, names)

    def measure(self, model: nn.Module, title: str = "evaluate") -> float:
        """The metric of a model on all images."""
        evaluator = self._evaluator()
        measure(self.args, model, self.processor, self.dataset, evaluator, self._class_of_label, title)
        return float(evaluator.compute()[self.metric])

    def calibration(self, count: int) -> tuple[str, list[Tensor]]:
        """The first images of split train as the model takes them, (1, C, H, W) each, and the split; of the judged one
        where there is no train."""
        args = self.args
        policies = {"on_bad_box": args.on_bad_box, "on_bad_image": args.on_bad_image}
        with about(args.data, "see hf-detr check"):
            splits = load_detection_dataset(args.data, args.format, masks=False, **policies, **data_options(args))
        split, rows = ("train", splits["train"]) if "train" in splits else (self.split, self.dataset)
        return split, list(self.images(rows.select(range(min(count, len(rows))))))

    def images(self, rows: Any) -> Iterator[Tensor]:
        """Images of rows as the model takes them, (1, C, H, W) each."""
        from datasets import Image

        for row in rows.cast_column("image", Image(decode=False)):
            yield self.processor(images=decode_image(row), return_tensors="pt")["pixel_values"]
