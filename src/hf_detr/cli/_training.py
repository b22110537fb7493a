"""The parts of `hf-detr train`: data, model and trainer."""

import argparse
import copy
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback, integrations

from hf_detr.configuration_detr import DetrConfig
from hf_detr.data.checks import check_dataset
from hf_detr.data.formats.images import image_files
from hf_detr.data.loading import load_detection_dataset, with_validation
from hf_detr.data.report import Report
from hf_detr.data.schema import id2label
from hf_detr.data.transform import DetectionTransform, transform_dataset
from hf_detr.image_processing_detr import DetrImageProcessor
from hf_detr.modeling_detr import DetrForObjectDetection
from hf_detr.modeling_detr_segmentation import DetrForSegmentation
from hf_detr.training import DetrTrainer, DetrTrainingArguments, TimeLimit
from hf_detr.training.recipes import MODEL_SETTINGS, apply_recipe
from hf_detr.training.teacher import Teacher
from hf_detr.training.unlabelled import LabelledImages, label_images
from hf_detr.wording import counted

from ._arguments import seconds_of
from ._automatic import REMEDY
from ._batch_size import LARGEST, ON_CPU, find_batch_size
from ._callbacks import UNPLANNED, LastStep
from ._errors import one_line
from ._run_settings import write_settings
from ._running import Model, choose_device, is_quicker_in_bf16, load_processor, model_class_of, read_model
from ._task import set_stuff, wants_masks, with_masks_from

# Images of predictions.png.
_NUM_DRAWN = 9


@dataclass
class Splits:
    """Rows to train on, to choose the best epoch by, and to measure that on; the last two may be the same.

    `names` are those of the three, as the data has them. `unlabelled`: the images that a teacher labelled, which are
    among those to train on.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    names: tuple[str, str, str]
    unlabelled: LabelledImages | None = None

    @property
    def by_name(self) -> dict[str, Dataset]:
        """Each split once."""
        return dict(zip(self.names, (self.train, self.validation, self.test), strict=True))


def print_report(
    args: argparse.Namespace, options: dict[str, Any], num_queries: int | Callable[[list[int]], int] | None = None
) -> Report:
    """What the data holds and what is wrong with it, for `num_queries` (as `check_dataset` takes it) where `args` have
    none. Raises ValueError where `hf-detr check` finds errors."""
    queries = args.num_queries or num_queries or 100
    policies = {"on_bad_box": args.on_bad_box, "on_bad_image": args.on_bad_image}
    masks = wants_masks(args) or (None if args.task is None else False)
    report = check_dataset(args.data, args.format, num_queries=queries, masks=masks, **policies, **options)
    print(report.text(), end="\n\n")
    if report.errors:
        first = report.errors[0]
        raise ValueError(
            f"{args.data}: {counted(len(report.errors), 'problem')} in the data, the first: {first.where}: "
            f"{first.message} All of them: hf-detr check {args.data} --json problems.json. To train all the same: "
            "--no-check."
        )
    return report


def load_splits(args: argparse.Namespace, options: dict[str, Any]) -> Splits:
    """The splits by their names; validation is held out of train where there is no other."""
    loaded = load_detection_dataset(
        args.data, args.format, on_bad_box=args.on_bad_box, on_bad_image=args.on_bad_image, **options
    )
    parts = with_validation(loaded, args.hold_out, args.seed, args.data)
    if len(parts) > len(loaded):
        print(f"no other split: {len(parts['validation']):,} of the training images are held out as validation\n")
    validation = "validation" if "validation" in parts else "test"
    test = "test" if "test" in parts else "validation"
    return Splits(parts["train"], parts[validation], parts[test], ("train", validation, test))


def with_taught(args: argparse.Namespace, splits: Splits) -> Splits:
    """With the images of `--unlabelled` in which the teacher finds something among those to train on, and the counts
    printed. Raises ValueError for a teacher that cannot teach, a folder without images, or with nothing found in any,
    while the run folder is still empty."""
    if args.teacher is None:
        return splits
    teacher = Teacher(args.teacher, id2label(splits.train), choose_device(args.device))  # or what is wrong with it
    if args.unlabelled is None:
        return splits
    if args.task != "detection":
        raise ValueError(f"--unlabelled: a teacher's labels have no masks, which --task {args.task} needs.")
    files = list(image_files(args.unlabelled))
    if not files:
        raise ValueError(f"--unlabelled {args.unlabelled}: no image in this folder or below.")
    first_id = 1 + max(max(rows["image_id"]) for rows in splits.by_name.values())
    looked_at = tqdm(files, desc="labelling", unit="image", mininterval=0.5, dynamic_ncols=True)
    found = label_images(teacher, looked_at, splits.train.features, first_id, args.unlabelled_threshold)
    print(f"--unlabelled {args.unlabelled}, labelled by {args.teacher}: {found}\n")
    if not found.objects:
        raise ValueError(
            f"--unlabelled {args.unlabelled}: the teacher is nowhere surer than {args.unlabelled_threshold:g}; lower "
            "--unlabelled-threshold, or leave it out."
        )
    return replace(splits, train=concatenate_datasets([splits.train, found.rows]), unlabelled=found)


def build_model(args: argparse.Namespace, splits: Splits, checkpoint: Path | None) -> tuple[Model, DetrImageProcessor]:
    """The model with the classes of the data, and its processor: from a checkpoint of this run, or to start with."""
    if checkpoint:
        model = model_class_of(str(checkpoint)).from_pretrained(checkpoint)
        return model, DetrImageProcessor.from_pretrained(checkpoint)
    torch.manual_seed(args.seed)
    names = id2label(splits.train)
    if args.backbone:
        model, processor = _fresh_model(args, names), DetrImageProcessor()
    else:
        # published files hold auxiliary_loss=False, which changes nothing at inference and much in training
        model = _trained_model(args, names, auxiliary_loss=True, **_dropouts(args))
        processor = load_processor(args.model)
        if args.num_queries and args.num_queries != model.config.num_queries:
            model.resize_queries(args.num_queries)
    if args.image_size:  # else the start's own, in whatever form
        processor.size = {"shortest_edge": args.image_size, "longest_edge": args.image_size * 1333 // 800}
    set_stuff(model, processor, splits.by_name, args.task)
    return model, processor


def _trained_model(args: argparse.Namespace, names: dict[int, str], **options: Any) -> Model:
    if args.task != "detection":
        return with_masks_from(args, names, REMEDY, **options)
    model = read_model(args.model, REMEDY, id2label=names, **options)
    if isinstance(model, DetrForSegmentation):
        model.unfreeze_detector()
        model = model.detr
    return model


def _dropouts(args: argparse.Namespace) -> dict[str, float]:
    """The paper's one dropout, in all places; nothing where the start's own stay."""
    names = ("dropout", "attention_dropout", "activation_dropout")
    return {} if args.dropout is None else dict.fromkeys(names, args.dropout)


def _fresh_model(args: argparse.Namespace, names: dict[int, str]) -> Model:
    # random norms and stages must learn; published ones are frozen as in the paper
    thawed = {} if args.pretrained_backbone else {"freeze_backbone_norms": False, "freeze_backbone_until": None}
    config = DetrConfig(
        backbone=args.backbone,
        backbone_kwargs={} if args.output_stride == 32 else {"output_stride": args.output_stride},
        use_pretrained_backbone=args.pretrained_backbone,
        num_queries=args.num_queries,
        d_model=args.d_model,
        encoder_layers=args.encoder_layers,
        decoder_layers=args.decoder_layers,
        encoder_attention_heads=args.heads,
        decoder_attention_heads=args.heads,
        encoder_ffn_dim=args.ffn_dim,
        decoder_ffn_dim=args.ffn_dim,
        id2label=names,
        label2id={name: index for index, name in names.items()},
        **_dropouts(args),
        **thawed,
    )
    try:
        return (DetrForObjectDetection if args.task == "detection" else DetrForSegmentation)(config)
    except ValueError:
        raise
    except Exception as error:
        if not args.pretrained_backbone:
            raise
        raise ValueError(
            f"--pretrained-backbone: the weights of {args.backbone} could not be fetched ({one_line(error)}); train "
            "without it, or name a --model folder."
        ) from error


def check_reporter(name: str) -> None:
    """Raises ValueError where the package that Transformers reports by is missing."""
    if name != "none" and not getattr(integrations, f"is_{name}_available")():
        raise ValueError(f"--report-to {name}: the package is not installed; pip install {name}, or take another.")


def make_time_limit(args: argparse.Namespace, splits: Splits, used_s: float) -> TimeLimit:
    """What ends the training in time for what comes after it, and keeps in the run folder what it decides."""

    def keep(limit: TimeLimit) -> None:
        args.max_steps, args.stop_after = limit.steps, limit.stop_at
        if int(os.environ.get("RANK", "0")) == 0:
            write_settings(args)
            if limit.stop_at is None:
                tqdm.write(f"--time-limit {args.time_limit}: {limit.steps:,} steps, of {limit.step_s:.2g} s each")

    after = len(splits.test) + _NUM_DRAWN
    decided = {"steps": args.max_steps, "stop_at": args.stop_after}
    return TimeLimit(
        seconds_of(args.time_limit), len(splits.validation), after, used_s=used_s, on_decision=keep, **decided
    )


def decide_batch_size(args: argparse.Namespace, model: Model, processor: DetrImageProcessor, train: Dataset) -> int:
    """The most images a step that fit, but not more than there are. Raises ValueError for several processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("--batch-size auto: their memories may differ, so name a number for several processes.")
    device, found = choose_device(args.device), min(ON_CPU, len(train))
    if device.type != "cpu":
        precision = _precision(args, model, device.type == "cuda")
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[precision]
        # an upright image beside a wide one is padded to a square of the longest edge
        edge = max(edge for edge in dict(processor.size).values() if edge)
        most = max(len(objects["bbox"]) for objects in train.select_columns("objects")["objects"])
        most *= 4 if args.augment == "strong" else 1  # images of a mosaic
        with torch.random.fork_rng(device_type=device.type):
            attempt = copy.deepcopy(model)
            apply_recipe(attempt, args.recipe, **{name: getattr(args, name, None) for name in MODEL_SETTINGS})
            found = find_batch_size(attempt, (edge, edge), most, device, dtype, min(LARGEST, len(train)))
    print(f"--batch-size auto: {found}\n")
    return found


def _precision(args: argparse.Namespace, model: Model, on_gpu: bool) -> str:
    if args.precision != "auto":
        return args.precision
    return "bf16" if is_quicker_in_bf16(model, on_gpu) else "fp32"


def default_workers(on_gpu: bool) -> int:
    """How many processes load images for each that trains.

    A worker makes some dozens of images a second: many times what a CPU trains on, a fraction of what a GPU does.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(2, min(8, share - 1)) if on_gpu else 2


def make_trainer(
    args: argparse.Namespace,
    model: Model,
    processor: DetrImageProcessor,
    splits: Splits,
    callbacks: list[TrainerCallback],
    is_over: bool = False,
) -> DetrTrainer:
    """A DetrTrainer with these settings; `is_over`: its training does nothing but load a checkpoint and end."""
    on_gpu = args.device != "cpu" and torch.cuda.is_available()
    precision = _precision(args, model, on_gpu)
    images = args.batch_size * args.gradient_accumulation * int(os.environ.get("WORLD_SIZE", "1"))
    steps = -(-len(splits.train) * args.repeated_augmentation // images)  # an epoch
    settings = DetrTrainingArguments(
        output_dir=str(args.output),
        num_train_epochs=0 if is_over else args.epochs or UNPLANNED,
        max_steps=-1 if is_over else args.max_steps or -1,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=args.batch_size,
        gradient_accumulation_steps=args.gradient_accumulation,
        learning_rate=args.learning_rate,
        backbone_learning_rate=args.backbone_learning_rate,
        class_head_learning_rate=args.class_head_learning_rate,
        muon=None if args.optimizer is None else args.optimizer == "muon",
        weight_decay=args.weight_decay,
        max_grad_norm=args.clip,
        lr_drop_at=args.lr_drop_at if 0 < args.lr_drop_at < 1 else None,
        recipe=args.recipe,
        denoising_queries=args.denoising_queries,
        query_groups=args.query_groups,
        ema_decay=args.ema,
        teacher=args.teacher,
        early_stopping_patience=args.patience,
        **({} if args.eval_every == 1 else {"eval_strategy": "steps", "eval_steps": steps * args.eval_every}),
        **({} if args.eval_every == 1 else {"save_strategy": "steps", "save_steps": steps * args.eval_every}),
        save_total_limit=max(2, args.save_total_limit),  # at the end of a training 1 would cost the last, and --resume
        on_bad_box=args.on_bad_box,
        augment_until=args.augment_until,
        repeated_augmentation=args.repeated_augmentation,
        group_by_aspect_ratio=True,
        seed=args.seed,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=args.device == "cpu" or not torch.accelerator.is_available(),
        dataloader_num_workers=default_workers(on_gpu) if args.workers is None else args.workers,
        dataloader_pin_memory=on_gpu,
        logging_steps=min(50, steps),
        report_to=args.report_to,
        run_name=args.output.resolve().name,
        disable_tqdm=True,
    )
    augment, masks = None if args.augment == "none" else args.augment, args.task != "detection"
    trainer = DetrTrainer(
        model,
        settings,
        train_dataset=transform_dataset(splits.train, DetectionTransform(processor, augment, masks)),
        eval_dataset=transform_dataset(splits.validation, DetectionTransform(processor, masks=masks)),
        processing_class=processor,
        callbacks=callbacks if args.eval_every == 1 else [*callbacks, LastStep()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
