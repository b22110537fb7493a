"""DetrTrainer: Transformers' Trainer, with DETR's optimizer, counting, evaluation and care for the data."""

import os
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import nn
from transformers import Trainer

from ..data.collator import DetectionCollator
from ..data.streams import is_stream
from ..data.verification import drop_bad_images
from ..evaluation import CocoEvaluator, PanopticEvaluator
from ..evaluation.tasks import BEST_BY, has_mask_head, task_of
from .arguments import DetrTrainingArguments
from .callbacks import EarlyStopping, UpdateAverage
from .checkpoint_folders import is_whole, last_checkpoint
from .ema import WeightAverage
from .health import QueryCollapse, warn_if_not_finite
from .losses import IntervalLosses
from .muon import MuonAdamW
from .optimizer import parameter_groups
from .recipes import MODEL_SETTINGS, RECIPES, apply_recipe
from .rows import check_is_transformed, class_problem, count_rows, transform_of, with_box_policy
from .streams import StreamBatches, TellEpoch
from .teacher import Lessons
from .trainer_batches import BatchesMixin
from .trainer_checkpoints import CheckpointMixin, read_progress
from .trainer_evaluation import EvaluationMixin


class DetrTrainer(BatchesMixin, EvaluationMixin, CheckpointMixin, Trainer):
    """Trains a DetrForObjectDetection or a DetrForSegmentation on rows of `DetectionTransform`; its arguments are those
    of `transformers.Trainer`.

        train = transform_dataset(data["train"], DetectionTransform(processor, augment="paper"))
        test = transform_dataset(data["test"], DetectionTransform(processor))
        trainer = DetrTrainer(model, DetrTrainingArguments("run"), train_dataset=train, eval_dataset=test)
        trainer.train()
        print(trainer.evaluator.table())

    What it adds:
        - the paper's parameter groups and schedule (see `DetrTrainingArguments`);
        - losses divided by the boxes and images of the whole optimizer step: accumulation and processes change nothing;
        - every part of the loss in the log, at the cost of no synchronisation a step;
        - COCO AP (`eval_map`, `eval_map_50`, ...) and `eval_loss` of the whole set, streamed; `evaluator` is the last
          `CocoEvaluator`. Targets are the data set's own rows where there are any, so crowds count as COCO has it;
        - of a model with masks, whose rows need `DetectionTransform(..., masks=True)`: AP of masks under the same names
          or, where the data tells things from stuff, panoptic quality (`eval_pq`, `eval_pq_things`, ...), which then
          chooses the best checkpoint;
        - random augmentation that follows from seed, epoch and image, so that a resumed run is the same run;
          `train(resume_from_checkpoint=True)` takes the newest whole checkpoint;
        - streams (`datasets.IterableDataset`), to train on with `max_steps` and to evaluate on if they end: an epoch is
          a pass, processes and workers read disjoint shares, and a resumed run goes on at its row;
        - a teacher, another trained detector whose detections are learned as well (see `DetrTrainingArguments`);
        - recipes: "paper", and "fast" with training-only parts that leave a plain DETR (see `DetrTrainingArguments`);
        - `data_wait_share`, after `train()`: the share of the time, evaluation not counted, that the model stood still
          because its next batch was not there yet; also in the metrics, as `train_data_wait_share`;
        - an average of the weights, early stopping, a look at every box before the first step.

    `data_collator` is by default a `DetectionCollator`, `processing_class` the processor of the transform. `predict`
    gives one result dict an image in the order of the data set: image_id, scores, labels, boxes (xyxy, pixels), masks
    (COCO's encodings) of a model with masks; or of panoptic data segmentation and segments_info.

    Raises:
        TypeError: other arguments than `DetrTrainingArguments`.
        ValueError: what cannot train: nn.DataParallel, rows without transform, bad boxes, more classes than the model
            has, functions of metrics or loss, for which `transformers.Trainer` is there.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: DetrTrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **options: Any,
    ):
        args = DetrTrainingArguments() if args is None else args
        if not isinstance(args, DetrTrainingArguments):
            raise TypeError(f"args must be DetrTrainingArguments, not {type(args).__name__}.")
        for name in ("compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics"):
            if options.get(name) is not None:
                raise ValueError(
                    f"{name}: the model has its loss and DetrTrainer its COCO AP; use transformers.Trainer."
                )
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs in one process: nn.DataParallel cannot divide lists of labels. Start a process a "
                f"GPU, `accelerate launch --num_processes {args.n_gpu} ...`, or choose one, CUDA_VISIBLE_DEVICES=0."
            )
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and args.world_size == 1:
            raise ValueError(
                f"{os.environ['WORLD_SIZE']} processes were started, but each would train alone and write over the "
                "others' files; without a GPU, say use_cpu=True."
            )
        if model is not None:
            self._apply_recipe(model, args)
        named = {"train_dataset": train_dataset}
        named |= (
            {f"eval_dataset[{key!r}]": one for key, one in eval_dataset.items()}
            if isinstance(eval_dataset, dict)
            else {"eval_dataset": eval_dataset}
        )
        checked = {name: self._checked(name, one, model, args) for name, one in named.items() if one is not None}
        train_dataset = checked.get("train_dataset")
        if isinstance(eval_dataset, dict):
            eval_dataset = {key: checked[f"eval_dataset[{key!r}]"] for key in eval_dataset}
        else:
            eval_dataset = checked.get("eval_dataset")
        if processing_class is None:
            transforms = [transform_of(one) for one in checked.values()]
            processing_class = next((one.processor for one in transforms if one is not None), None)

        if args.metric_for_best_model == "map":  # the default, which says "what this is judged by"
            args.metric_for_best_model = BEST_BY[task_of(model, eval_dataset)]
        self.evaluator: CocoEvaluator | PanopticEvaluator | None = None
        self.data_wait_share: float | None = None
        self._waited_s = self._evaluated_s = 0.0
        self._average: WeightAverage | None = None
        self._losses = IntervalLosses()
        self._progress: dict[str, Any] = {}  # of the checkpoint that is resumed
        self._stream: StreamBatches | None = None  # that is trained on
        self._counts_of_step: dict[str, torch.Tensor | int] = {}
        self._last_predictions: tuple[torch.Tensor, torch.Tensor] | None = None
        super().__init__(
            model,
            args,
            DetectionCollator() if data_collator is None else data_collator,
            train_dataset,
            eval_dataset,
            processing_class,
            **options,
        )
        if (self.is_fsdp_enabled or self.is_deepspeed_enabled) and getattr(self.model, "training_only", None):
            raise ValueError("Training-only parts do not go with FSDP or DeepSpeed; use recipe='paper'.")
        self.model_accepts_loss_kwargs = True  # the losses are shares of the step's already
        self._lessons = None
        if args.teacher is not None:
            self._lessons = Lessons(args.teacher, self.model.config, self.processing_class, args.device)
        if is_stream(train_dataset):
            self.add_callback(TellEpoch(lambda: self._stream))
        if args.averages_weights:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ValueError("ema_decay needs whole weights in each process; set it to 0 with FSDP or DeepSpeed.")
            self.add_callback(UpdateAverage(lambda: self._average))
        if args.uses_muon and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError("muon=True needs whole matrices in each process; set it to False with FSDP or DeepSpeed.")
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStopping(args.early_stopping_patience, args.early_stopping_threshold))

    @staticmethod
    def _apply_recipe(model: nn.Module, args: DetrTrainingArguments) -> None:
        wanted = {name: getattr(args, name) for name in MODEL_SETTINGS}
        if getattr(model.config, "freeze_detector", False):  # which has nothing to learn from training-only parts
            wanted = {
                name: getattr(RECIPES["paper"], name) if value is None else value for name, value in wanted.items()
            }
        apply_recipe(model, args.recipe, **wanted)

    def call_model_init(self, *args: Any, **kwargs: Any) -> nn.Module:
        """As in Transformers, with the recipe applied to what it makes."""
        model = super().call_model_init(*args, **kwargs)
        self._apply_recipe(model, self.args)
        return model

    @staticmethod
    def _checked(name: str, dataset: Any, model: nn.Module | None, args: DetrTrainingArguments) -> Any:
        """The data set, with its boxes under `args.on_bad_box`."""
        check_is_transformed(dataset, name)
        transform = transform_of(dataset)
        if has_mask_head(model) and transform is not None and not transform.masks:
            raise ValueError(f"{name}: the model has masks and the rows none; use DetectionTransform(..., masks=True).")
        config = getattr(model, "config", None)
        problem = class_problem(dataset, config.id2label) if config is not None else None
        if problem is not None:
            must_not_train, words = problem
            if must_not_train:
                raise ValueError(f"{name}: {words}")
            warnings.warn(f"{name}: {words}")
        if is_stream(dataset) and {args.on_bad_box, args.on_bad_image} != {"error"}:
            warnings.warn(
                f"{name}: on_bad_box and on_bad_image look at all rows before the first step, which a stream does not "
                "allow; give them to load_detection_dataset(..., streaming=True)."
            )
        if args.on_bad_image == "drop":
            dataset = drop_bad_images(dataset, name)
        counts = count_rows(dataset, name, args.on_bad_box)
        if counts is None:
            return dataset
        if args.process_index == 0:
            print(f"{name}: {counts}")
        if config is not None and counts.most > config.num_queries:
            warnings.warn(
                f"{name}: an image has {counts.most} objects and the model {config.num_queries} queries, so some are "
                "never found; make the model with more num_queries."
            )
        return with_box_policy(dataset, args.on_bad_box) if counts.bad_boxes else dataset

    # ---- loss and optimizer

    def compute_loss(
        self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's loss: with `num_items_in_batch` its share of the optimizer step's, times the number of processes,
        because data parallelism averages gradients."""
        counts = {}
        if num_items_in_batch is not None:
            counts = {"num_items_in_batch": num_items_in_batch, **self._counts_of_step}
        try:
            outputs = model(**inputs, **counts)
        except ValueError as error:
            ids = [int(label["image_id"]) for label in inputs.get("labels", ()) if "image_id" in label]
            raise ValueError(f"Step {self.state.global_step + 1}, images {ids}: {error}") from error
        self._losses.add({"loss": outputs.loss, **outputs.loss_dict})
        self._last_predictions = (outputs.logits.detach(), outputs.pred_boxes.detach())
        loss = outputs.loss * self.args.world_size if counts else outputs.loss
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer of `args.optim`, AdamW by default, with the paper's groups; or `MuonAdamW` (`args.muon`)."""
        if self.optimizer is None:
            model = self.model if model is None else model
            chosen = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, model)
            optimizer_class, settings = chosen
            own_parameters = {"params", "model", "optimizer_dict"} & set(settings)
            if own_parameters or not (
                isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer)
            ):
                raise ValueError(f"optim={self.args.optim!r} makes parameter groups of its own; choose adamw_torch.")
            args = self.args
            rates = (args.learning_rate, args.backbone_learning_rate, args.weight_decay, args.class_head_rate)
            groups = parameter_groups(model, *rates, muon=args.uses_muon)
            if args.uses_muon:
                optimizer_class = MuonAdamW
                settings = {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
            self.optimizer = optimizer_class(groups, **settings)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The paper's, rates / 10 after `lr_drop_at` of the training, for constant rates; else Transformers' own."""
        constant = self.args.lr_scheduler_type in ("constant", "constant_with_warmup")
        if self.lr_scheduler is None and constant and self.args.lr_drop_at is not None:
            warmup = self.args.get_warmup_steps(num_training_steps)

            def factor(step: int) -> float:
                # the length of the run as it is now: a callback such as TimeLimit may have made it less
                drop = round((self.state.max_steps or num_training_steps) * self.args.lr_drop_at)
                return min(1.0, (step + 1) / (warmup + 1)) * (0.1 if step >= drop else 1.0)

            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    # ---- the run

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in Transformers. True resumes from the newest checkpoint in `output_dir` that was written to its end.

        With `ema_decay` the model holds the averaged weights afterwards. On a CPU the process keeps from then on what
        memory it frees (see `process_memory`). Raises ValueError where there is no such checkpoint, or where it was
        saved with `ema_decay` and this run has none, or the other way round.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"{self.args.output_dir} holds no whole checkpoint; train without resuming.")
        elif resume_from_checkpoint and not is_whole(resume_from_checkpoint):
            raise ValueError(f"{resume_from_checkpoint} is no checkpoint, or was not written to its end; take another.")
        if resume_from_checkpoint:
            resume_from_checkpoint = str(resume_from_checkpoint)
        if getattr(self.processing_class, "class_thresholds", None):
            warnings.warn("class_thresholds of the processor were chosen for other weights; they are removed.")
            self.processing_class.class_thresholds = None
        self._progress = read_progress(resume_from_checkpoint, self.args) if resume_from_checkpoint else {}
        self._losses.load_state_dict(self._progress.get("losses"))
        self._stream = None
        streams, starts_anew = is_stream(self.train_dataset), self.args.ignore_data_skip
        if streams and resume_from_checkpoint and not starts_anew and self._progress.get("stream") is None:
            raise ValueError(
                f"{resume_from_checkpoint} holds no position in a stream; begin a new pass with ignore_data_skip=True."
            )
        self._waited_s = self._evaluated_s = 0.0
        if self.args.averages_weights:
            if self.model_init is not None:
                raise ValueError("ema_decay averages one model; give the trainer a model, not model_init.")
            self._average = WeightAverage(self.model, self.args.ema_decay)
        self.args.ignore_data_skip |= streams  # the batches of a stream know where to go on
        try:
            result = super().train(resume_from_checkpoint or None, *args, **kwargs)
        finally:
            self.args.ignore_data_skip = starts_anew
            if self._stream is not None:
                self._stream.close()
                self._stream = None
        if self._average is not None:
            if not (self.args.load_best_model_at_end and self.state.best_model_checkpoint):
                self.model.load_state_dict(self._average.model.state_dict())
            self._average = None
        self._last_predictions = None
        seconds = result.metrics["train_runtime"] - self._evaluated_s
        self.data_wait_share = min(1.0, self._waited_s / max(seconds, 1e-9))
        result.metrics["train_data_wait_share"] = self.data_wait_share
        return result

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in Transformers."""
        begun = time.perf_counter()
        metrics = super().evaluate(*args, **kwargs)
        self._evaluated_s += time.perf_counter() - begun
        return metrics

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """With the training's loss, also its parts and the rates of all groups of parameters; and a warning where the
        numbers say that it has gone wrong."""
        if self.is_in_train and "loss" in logs:
            logs.update(self._rates_of_groups(logs.get("learning_rate")))
            processes = self.args.world_size
            means = self._losses.take(processes, lambda sums: self.accelerator.reduce(sums, reduction="mean"))
            if self.args.logging_nan_inf_filter:
                means.pop("loss", None)
            logs.update(means)  # also the loss: Transformers' own forgets the steps before a resume
            if self._last_predictions is not None:
                collapse = QueryCollapse()
                collapse.add(*self._last_predictions)
                collapse.warn(f"Step {self.state.global_step}")
            warn_if_not_finite(logs, self.state.global_step)
        super().log(logs, *args, **kwargs)

    def _rates_of_groups(self, rate: float | None) -> dict[str, float]:
        """The rates of the groups after the first, which Transformers logs; a schedule scales all alike."""
        first, *others = self.optimizer.param_groups
        if rate is None or not first.get("initial_lr"):
            return {}
        factor = rate / first["initial_lr"]
        return {f"learning_rate_{one['name']}": factor * one["initial_lr"] for one in others if "name" in one}

    def _share_norm_statistics(self) -> None:
        """Live batch norms see each process's images only; everyone takes the first process's, which are saved."""
        if self.args.world_size > 1 and not getattr(self.model.config, "freeze_backbone_norms", True):
            models = [self.model] if self._average is None else [self.model, self._average.model]
            for statistics in (buffer for model in models for buffer in model.buffers()):
                broadcast(statistics)
