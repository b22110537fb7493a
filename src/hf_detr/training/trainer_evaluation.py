"""How DetrTrainer evaluates and predicts: batch by batch into the evaluator of its task, with flat memory."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from ..data.schema import stuff_ids
from ..data.streams import is_stream
from ..evaluation import CocoEvaluator, PanopticEvaluator, evaluate_detections, evaluator_of, task_of
from ..evaluation.batches import SameSizeBatches, check_image_ids, processed_sizes_hw, unpadded
from ..evaluation.evaluator import check_finite
from ..image_processing_detr import DetrImageProcessor
from .health import QueryCollapse
from .losses import EvaluationLosses
from .rows import ApplyBoxPolicy, raw_rows, transform_of


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

        Nothing is padded: a batch of several sizes is divided. In the precision of the training while it runs, outside
        of it in float32, unless `bf16_full_eval` or `fp16_full_eval` is set. ValueError for outputs not finite.
        Metrics are the numbers of the evaluator's `summary`, `loss` and its parts, under `metric_key_prefix`. With
        "Prediction" as description, `predictions` is a list of one dict an image, of a stream in the order in which
        processes and workers read it.
        """
        model = self._evaluated_model()
        processor = self.processing_class or DetrImageProcessor()
        evaluator = self._new_evaluator(dataloader.dataset)
        losses = EvaluationLosses(self.model.config)
        collapse, predictions, order, num_images = QueryCollapse(), [], [], 0
        share = dataloader.batch_sampler if isinstance(dataloader.batch_sampler, SameSizeBatches) else None
        rows = _Rows(dataloader.dataset)
        self.callback_handler.eval_dataloader = dataloader
        # training's own precision while it runs; afterwards full precision, so that the numbers are those of everyone
        precision = self.accelerator.autocast if self.is_in_train else nullcontext

        def batches() -> Iterator[dict]:
            for step, batch in enumerate(dataloader):
                extra = share is not None and share.is_extra(step)
                streamed = batch.pop("targets", None)
                begun = num_images
                # sharded models need as many forward passes everywhere; their batches are of one size already
                for positions, part in [(None, batch)] if self.is_fsdp_enabled else unpadded(batch):
                    labels, targets = part.get("labels"), part.get("labels")
                    indices = None if positions is None else [begun + position for position in positions]
                    if share is not None:
                        indices = share.batches[step]
                        indices = indices if positions is None else [indices[position] for position in positions]
                        targets = rows.of(indices, labels)
                    elif streamed is not None:
                        targets = [streamed[position] for position in positions]
                    yield {
                        **part,
                        "indices": indices,
                        "rows": targets,
                        "targets": None if labels is None or extra else targets,
                        "extra": extra,
                    }
                if not extra:
                    self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)

        def predict(batch: dict) -> list[dict]:
            nonlocal num_images
            labels, targets = batch.get("labels"), batch["rows"]
            inputs = {
                name: self._prepare_input(batch[name]) for name in ("pixel_values", "pixel_mask") if name in batch
            }
            if labels is not None:
                inputs |= {"labels": self._prepare_input(labels), **losses.counts_of(labels)}
            with precision():
                outputs = model(**inputs)
            if batch["extra"]:
                return []
            ids = None if targets is None else [int(target["image_id"]) for target in targets]
            check_finite(outputs, ids)
            seen_hw = [label["size"] for label in labels or () if "size" in label]
            seen_hw = torch.stack(seen_hw) if seen_hw else None
            results = evaluator.post_process(processor, outputs, _sizes_hw(labels, targets), seen_hw)
            if labels is not None:
                losses.add(outputs.loss_dict, labels)
            if description == "Prediction":
                ids = [None] * len(results) if ids is None else ids
                predictions.extend({"image_id": one, **result} for one, result in zip(ids, results, strict=True))
                order.extend(batch["indices"] or range(num_images, num_images + len(results)))
            collapse.add(outputs.logits, outputs.pred_boxes)
            num_images += len(results)
            return results

        was_training = model.training
        model.eval()
        try:
            evaluate_detections(predict, batches(), evaluator, targets_key="targets")
        finally:
            model.train(was_training)

        collapse.warn(f"Step {self.state.global_step}, {description.lower()}")
        metrics = losses.compute(gather_object([losses.state()]))
        if metrics:
            if is_stream(dataloader.dataset):
                check_image_ids(evaluator.num_duplicates)
            self.evaluator = evaluator
            metrics |= evaluator.summary()
        if description == "Prediction":
            pairs = gather_object(list(zip(order, predictions, strict=True)))
            predictions = [prediction for _, prediction in sorted(pairs, key=lambda pair: pair[0])]
        return EvalLoopOutput(
            predictions=predictions,
            label_ids=None,
            metrics={f"{metric_key_prefix}_{name}": value for name, value in metrics.items()},
            num_samples=sum(gather_object([num_images])),
        )

    def _new_evaluator(self, dataset: Any) -> CocoEvaluator | PanopticEvaluator:
        """That of the task; what the model does not say of stuff, the data do."""
        task, config, args = task_of(self.model, dataset), self.model.config, self.args
        stuff, rows = getattr(config, "label_ids_to_fuse", None), raw_rows(dataset, "objects")
        if task == "panoptic" and stuff is None and rows is not None:
            stuff = stuff_ids(rows)
        return evaluator_of(task, config.id2label, args.eval_max_detections, args.eval_score_threshold, stuff)

    def _evaluated_model(self) -> nn.Module:
        """The bare model (a data-parallel wrapping would wait for the others, whose shares differ), or its average."""
        self._share_norm_statistics()
        model = self.model if self._average is None else self._average.model
        if not self.is_in_train:
            if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
                model = self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # of autocast
            if self.args.fp16_full_eval or self.args.bf16_full_eval:
                model = model.to(torch.float16 if self.args.fp16_full_eval else torch.bfloat16)
            model = model.to(self.args.device) if self.place_model_on_device or self.args.bf16_full_eval else model
        return model


def evaluated_sizes_hw(dataset: Any) -> list[tuple[int, int]] | None:
    """(height, width) of each image as the model will see it; None where the rows do not tell it."""
    transform = transform_of(dataset)
    fixed = transform is not None and all(isinstance(one, ApplyBoxPolicy) for one in transform.augment)
    return processed_sizes_hw(dataset, transform) if fixed else None


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
