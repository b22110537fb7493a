"""COCO AP, of boxes or masks, for a plain `transformers.Trainer`."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import EvalPrediction
from transformers.utils import ModelOutput

from ..evaluation import CocoEvaluator
from ..evaluation.evaluator import check_finite


class CocoMetric:
    """Both functions that `Trainer` takes for metrics: `compute_metrics` is the object itself.

        metric = CocoMetric(processor, model.config.id2label)
        args = TrainingArguments(..., remove_unused_columns=False, batch_eval_metrics=True)
        Trainer(..., compute_metrics=metric, preprocess_logits_for_metrics=metric.preprocess)

    Detections are made and counted in `preprocess`, batch by batch, before Trainer gathers anything: it would cut the
    labels of the last batch to the number of its images. So memory stays flat. Two things differ from `evaluate_model`:
    labels do not hold crowd regions, and `Trainer` pads images of several sizes into one batch, which changes the
    outputs; with per_device_eval_batch_size=1 nothing is padded. `evaluator` is the `CocoEvaluator`, for tables
    and files. `iou_type` is "bbox", or "segm" for the AP of masks.
    """

    def __init__(
        self,
        processor: Any,
        id2label: Mapping[int, str] | Sequence[str],
        score_threshold: float = 0.0,
        iou_type: str = "bbox",
    ):
        self.processor = processor
        self.evaluator = CocoEvaluator(id2label, iou_type=iou_type, score_threshold=score_threshold)
        self._begin = True

    def preprocess(self, outputs: Sequence[Any], labels: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Takes in a batch: the model's outputs but the loss, and its label dicts; returns the scores (B, 1).

        Raises ValueError where logits and boxes are not the first tensors of `outputs`, or are not finite.
        """
        if self._begin:
            self.evaluator.reset()
            self._begin = False
        tensors = [output for output in outputs if isinstance(output, Tensor)]
        if len(tensors) < 2 or tensors[0].ndim != 3 or tensors[1].shape[-1] != 4:
            raise ValueError(
                f"expected logits (B, Q, C + 1) and boxes (B, Q, 4) first, got {[tuple(one.shape) for one in tensors]};"
                " leave logits and pred_boxes out of ignore_keys."
            )
        predictions = ModelOutput(logits=tensors[0], pred_boxes=tensors[1])
        if self.evaluator.iou_type == "segm":
            predictions["pred_masks"] = tensors[2]
        check_finite(predictions, [int(label["image_id"]) for label in labels])
        original, processed = ([label[name].tolist() for label in labels] for name in ("orig_size", "size"))
        self.evaluator.update(self.evaluator.post_process(self.processor, predictions, original, processed), labels)
        return tensors[0].softmax(-1)[..., :-1].amax((1, 2))[:, None]

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """The metrics of all processes after the last batch, nothing before it."""
        if not compute_result:
            return {}
        self._begin = True
        self.evaluator.synchronize_between_processes()
        return self.evaluator.summary()
