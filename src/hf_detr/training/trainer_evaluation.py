"""How DetrTrainer evaluates and predicts: batch by batch into a CocoEvaluator, with flat memory."""

from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from ..evaluation import CocoEvaluator
from ..image_processing_detr import DetrImageProcessor
from .health import QueryCollapse
from .losses import EvaluationLosses
from .rows import ApplyBoxPolicy, raw_rows, transform_of
from .samplers import ShareOfBatches


class EvaluationMixin:
    """The part of `DetrTrainer` that evaluates."""

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """One pass over `dataloader`; `evaluate` and `predict` call it. Of several processes, each must.

        Metrics are the numbers of `CocoEvaluator.summary`, `loss` and its parts, under `metric_key_prefix`. With
        "Prediction" as description, `predictions` is a list of one dict an image.
        """
        model = self._evaluated_model()
        config = self.model.config
        processor = self.processing_class or DetrImageProcessor()
        evaluator = CocoEvaluator(config.id2label, max_dets=self.args.eval_max_detections)
        losses = EvaluationLosses(
            config.num_queries, config.eos_coefficient, config.bbox_loss_coefficient, config.giou_loss_coefficient
        )
        collapse, predictions, num_images = QueryCollapse(), [], 0
        share = dataloader.batch_sampler if isinstance(dataloader.batch_sampler, ShareOfBatches) else None
        rows = _Rows(dataloader.dataset)
        was_training = model.training
        model.eval()
        self.callback_handler.eval_dataloader = dataloader
        for step, batch in enumerate(dataloader):
            labels = batch.get("labels")
            inputs = {
                name: self._prepare_input(batch[name]) for name in ("pixel_values", "pixel_mask") if name in batch
            }
            if labels is not None:
                inputs |= {"labels": self._prepare_input(labels), **losses.counts_of(labels)}
            with self.accelerator.autocast():
                outputs = model(**inputs)
            if share is not None and share.is_extra(step):
                continue
            targets = rows.of(share.batches[step], labels) if share is not None else labels
            results = processor.post_process_object_detection(
                outputs, threshold=self.args.eval_score_threshold, target_sizes=_sizes_hw(labels, targets)
            )
            if labels is not None:
                evaluator.update(results, targets)
                losses.add(outputs.loss_dict, labels)
            if description == "Prediction":
                ids = [None] * len(results) if targets is None else [int(target["image_id"]) for target in targets]
                predictions += [{"image_id": one, **result} for one, result in zip(ids, results, strict=True)]
            collapse.add(outputs.logits, outputs.pred_boxes)
            num_images += len(results)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        model.train(was_training)

        collapse.warn(f"Step {self.state.global_step}, {description.lower()}")
        metrics = losses.compute(gather_object([losses.state()]))
        if metrics:
            evaluator.synchronize_between_processes()
            self.evaluator = evaluator
            metrics |= evaluator.summary()
        if description == "Prediction":
            predictions = self._in_order(predictions, share)
        return EvalLoopOutput(
            predictions=predictions,
            label_ids=None,
            metrics={f"{metric_key_prefix}_{name}": value for name, value in metrics.items()},
            num_samples=sum(gather_object([num_images])),
        )

    def _evaluated_model(self) -> nn.Module:
        """The bare model (a data-parallel wrapping would wait for the others, whose shares differ), or its average."""
        self._share_norm_statistics()
        model = self.model if self._average is None else self._average.model
        if not self.is_in_train:
            if self.args.fp16_full_eval or self.args.bf16_full_eval:
                model = model.to(torch.float16 if self.args.fp16_full_eval else torch.bfloat16)
            model = model.to(self.args.device) if self.place_model_on_device or self.args.bf16_full_eval else model
        return model

    def _in_order(self, predictions: list[dict], share: ShareOfBatches | None) -> list[dict]:
        """Of all processes, in the order of the data set."""
        if share is None or self.args.world_size == 1:
            return gather_object(predictions)
        own = [index for batch in share.batches[: share.num_own] for index in batch]
        pairs = gather_object(list(zip(own, predictions, strict=True)))
        return [prediction for _, prediction in sorted(pairs, key=lambda pair: pair[0])]


class _Rows:
    """The rows that a transformed data set was made of, where they hold what its labels do: labels lack the crowds."""

    def __init__(self, dataset: Any):
        transform = transform_of(dataset)
        augmentations = [] if transform is None else transform.augment
        unchanged = transform is not None and all(isinstance(one, ApplyBoxPolicy) for one in augmentations)
        self._rows = raw_rows(dataset, "image_id", "width", "height", "objects") if unchanged else None
        self._policies = augmentations

    def of(self, indices: list[int], labels: list[dict] | None) -> list[dict] | None:
        """One target an image: its row, or its label dict."""
        if self._rows is None:
            return labels
        rows = [self._rows[index] for index in indices]
        for policy in self._policies:
            rows = [policy(row) for row in rows]
        return rows


def _sizes_hw(labels: list[dict] | None, targets: list[dict] | None) -> Tensor | None:
    """(B, 2) original heights and widths; None where nobody knows them, and boxes stay fractions."""
    if labels is not None and all("orig_size" in label for label in labels):
        return torch.stack([label["orig_size"] for label in labels])
    if targets is not None and all("height" in target and "width" in target for target in targets):
        return torch.tensor([[target["height"], target["width"]] for target in targets])
    return None
