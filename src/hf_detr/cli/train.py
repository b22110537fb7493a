"""`hf-detr train DATA`: fine-tunes a detector and leaves a run folder that any of the tools reads."""

import argparse
import os
import shlex
import time
from contextlib import closing, suppress
from pathlib import Path

from ._arguments import (
    above_zero,
    add_data_arguments,
    add_policy_arguments,
    batch_size,
    counting,
    data_options,
    duration,
    fraction,
    not_negative,
    positive,
)
from ._config_file import with_config
from ._errors import about
from ._outputs import check_output_folder, new_run_folder, only_writer
from ._run_settings import check_run_folder, write_settings
from ._sources import check_data_source, model_source

_CHECKPOINT = "facebook/detr-resnet-50"
_EPILOG = """\
What is not given is picked from the data, the start and the machine: --explain says what and why, and trains nothing.
The run folder gets the model and its processor (for from_pretrained, pipeline and the other commands), metrics.json,
curves.png, predictions.png, of boxes and masks precision_recall.png and confusion.png, README.md (the model card), and
checkpoints. Ctrl-C writes a checkpoint and stops; the same command with --resume goes on from there, as it does after a
crash. run.json has every option of the run, for --config.
"""
_REPORTERS = ("tensorboard", "wandb", "trackio", "mlflow")
_EARLIEST_DROP = 0.2  # of a training with a time limit, whose length is known after a tenth of it
# What shapes a fresh model alone, with the paper's numbers.
_FRESH = {"d_model": 256, "heads": 8, "ffn_dim": 2048, "encoder_layers": 6, "decoder_layers": 6, "output_stride": 32}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("--output", type=Path, metavar="RUN", help="the run folder (default: a new one in runs/)")
    parser.add_argument(
        "--config", type=Path, metavar="FILE",
        help="YAML or JSON with any of these options, such as 'batch_size: 8'; the command line goes before it",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the run folder")
    parser.add_argument(
        "--explain", action="store_true", help="print what would be picked for this data, and why; train nothing"
    )

    data = add_data_arguments(parser, required=False)
    add_policy_arguments(data)
    data.add_argument("--no-check", action="store_true", help="do not look for problems in all of the data first")
    data.add_argument(
        "--hold-out", type=fraction, default=0.1, metavar="SHARE",
        help="of the training images, to evaluate on where the data has no other split (default 0.1)",
    )  # fmt: skip

    parser.add_argument(
        "--task", choices=("detection", "instance", "panoptic"),
        help="boxes; or masks of objects; or segments of things and stuff. Default: panoptic where the data tells them "
        "apart, instance where the model to start from has masks, else detection",
    )  # fmt: skip
    model = parser.add_argument_group("what to start from")
    model.add_argument(
        "--model",
        metavar="CHECKPOINT",
        help="a whole DETR: Hub name, folder, or what the package carries, tiny or imagenet (default: "
        f"{_CHECKPOINT}); or else:",
    )
    model.add_argument(
        "--freeze-detector",
        action="store_true",
        help="of --model, trained on the boxes of this data, learn masks alone",
    )
    model.add_argument("--backbone", metavar="NAME", help="a fresh DETR on this timm network, such as resnet50")
    model.add_argument("--pretrained-backbone", action="store_true", help="the backbone starts from timm's weights")
    model.add_argument(
        "--num-queries", type=positive, metavar="N", help="detections an image, at most (default: picked)"
    )
    for name, value in _FRESH.items():
        kinds = {"type": counting if name == "encoder_layers" else positive, "metavar": "N"}
        if name == "output_stride":
            kinds = {"type": int, "choices": (8, 16, 32)}
        flag = f"--{name.replace('_', '-')}"
        model.add_argument(flag, default=value, help=f"of a fresh model (default {value})", **kinds)

    teacher = parser.add_argument_group("a teacher")
    teacher.add_argument(
        "--teacher", metavar="CHECKPOINT",
        help="a trained detector of any architecture, Hub name or folder: what it sees in the images is learned too",
    )  # fmt: skip
    teacher.add_argument(
        "--unlabelled", type=Path, metavar="DIR", help="images without annotations, which the teacher labels first"
    )
    teacher.add_argument(
        "--unlabelled-threshold", type=fraction, default=0.7, metavar="P", help="of those labels (default 0.7)"
    )

    training = parser.add_argument_group("training (what has no default is picked: see --explain)")
    training.add_argument(
        "--epochs", type=positive, metavar="N",
        help="passes over the images; with --time-limit or --max-steps as many as fit",
    )  # fmt: skip
    training.add_argument("--max-steps", type=positive, metavar="N", help="the whole training, in place of --epochs")
    training.add_argument(
        "--time-limit", type=duration, metavar="TIME",
        help="such as 90s, 20m or 1h30m: as many steps as fit, decided once, with evaluation and writing at the end",
    )  # fmt: skip
    training.add_argument(
        "--stop-after", type=positive, metavar="N", help="of --max-steps, as a --time-limit did that ran out (run.json)"
    )
    training.add_argument(
        "--batch-size", type=batch_size, metavar="N",
        help="images a step; auto: the most that fit, at most 16 on a GPU, 4 on a CPU",
    )  # fmt: skip
    training.add_argument("--gradient-accumulation", type=positive, default=1, metavar="K", help="batches a step")
    training.add_argument("--learning-rate", type=above_zero, metavar="LR", help="of all but the backbone")
    training.add_argument(
        "--backbone-learning-rate", type=above_zero, metavar="LR", help="default: a share of --learning-rate"
    )
    training.add_argument(
        "--class-head-learning-rate", type=above_zero, metavar="LR", help="default: as the recipe says"
    )
    training.add_argument("--weight-decay", type=not_negative, default=1e-4, metavar="X", help="default 1e-4")
    training.add_argument(
        "--optimizer", choices=("adamw", "muon"),
        help="muon: AdamW, with orthogonal steps for the transformer's matrices (default: the recipe's)",
    )  # fmt: skip
    training.add_argument(
        "--lr-drop-at", type=fraction, metavar="SHARE", help="of the training, then rates / 10; 1: never"
    )
    training.add_argument("--dropout", type=fraction, metavar="P", help="of the transformer, in all places")
    training.add_argument("--clip", type=above_zero, metavar="NORM", help="of the gradient, at most")
    training.add_argument(
        "--recipe", choices=("paper", "fast"), help="fast: training-only parts that leave a plain DETR; paper: none",
    )  # fmt: skip
    training.add_argument(
        "--denoising-queries", type=counting, metavar="N", help="noised copies of each target (default: the recipe's)"
    )
    training.add_argument(
        "--query-groups", type=positive, metavar="N", help="groups of queries that train (default: the recipe's)"
    )
    training.add_argument(
        "--ema", type=fraction, metavar="DECAY", help="average the weights, such as 0.9997; 0: not, whatever the recipe"
    )
    training.add_argument("--eval-every", type=positive, metavar="EPOCHS", help="evaluate and write a checkpoint")
    training.add_argument(
        "--save-total-limit", type=positive, default=2, metavar="N",
        help="checkpoints to keep (default 2); the best and the last are kept in any case",
    )  # fmt: skip
    training.add_argument("--patience", type=positive, metavar="N", help="stop when AP has not grown for N evaluations")
    training.add_argument(
        "--augment", choices=("paper", "flip", "strong", "none"),
        help="paper: flips, sizes and crops; flip: that alone; strong, for few images: mosaic, mix-up, copy-paste, "
        "colours too",
    )  # fmt: skip
    training.add_argument(
        "--augment-until", type=fraction, default=0.9, metavar="SHARE",
        help="of the training; then --augment strong goes over to flips (default 0.9; 1: never)",
    )  # fmt: skip
    training.add_argument(
        "--repeated-augmentation", type=positive, default=1, metavar="K", help="times an epoch has every image"
    )
    training.add_argument(
        "--image-size", type=positive, metavar="PX", help="shortest edge of the images that the model sees"
    )
    training.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="auto: bf16 where the model is quicker with it, else fp32",
    )
    training.add_argument("--seed", type=counting, default=0, metavar="N", help="of weights, order and augmentation")
    training.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto: a GPU where there is one")
    training.add_argument(
        "--workers", type=counting, metavar="N",
        help="processes that load images (default: 2 for a CPU, up to 8 for a GPU, as there are cores)",
    )  # fmt: skip

    training.add_argument(
        "--report-to", choices=("none", *_REPORTERS), default="none",
        help="send the log there as well, by Transformers' own integration (default none)",
    )  # fmt: skip

    card = parser.add_argument_group("publishing")
    card.add_argument("--license", default="apache-2.0", metavar="ID", help="for the model card (default apache-2.0)")
    card.add_argument(
        "--push-to-hub", metavar="USER/NAME", help="upload the run folder, without checkpoints, at the end"
    )


def run(args: argparse.Namespace) -> int:
    if args.config is not None:
        args = with_config(args, add_arguments)
    _check_together(args)
    check_data_source(args.data)
    if args.model:
        args.model = model_source(args.model)
    if args.teacher:
        check_data_source(args.teacher)
    if args.explain:
        return explain(args)
    is_new = args.output is None
    if is_new:
        args.output = new_run_folder(args.data)
        args.command_line = [*args.command_line, f"--output={args.output}"]
        print(f"run folder: {args.output} (--output names another)\n")
    check_run_folder(args)
    existed = args.output.exists() and not is_new
    check_output_folder(args.output)
    try:
        with only_writer(args.output):
            return train(args)
    finally:
        if not existed:
            with suppress(OSError):
                args.output.rmdir()  # is empty where the run was refused


def train(args: argparse.Namespace) -> int:
    """The run itself, with arguments that are known to go together."""
    from hf_detr.configuration_detr import DetrConfig
    from hf_detr.training import last_checkpoint
    from hf_detr.training.checkpoint_folders import is_finished

    from ._automatic import Automatic
    from ._callbacks import Interruption, OneBar, Stopped
    from ._process_memory import keep_freed_memory
    from ._run_folder import write_run_folder
    from ._running import choose_device, quiet_libraries
    from ._task import decide_task
    from ._training import (
        build_model,
        check_reporter,
        decide_batch_size,
        load_splits,
        make_time_limit,
        make_trainer,
        print_report,
        with_taught,
    )

    begun = time.monotonic()
    quiet_libraries()
    check_reporter(args.report_to)
    if choose_device(args.device).type == "cpu":
        keep_freed_memory()
    checkpoint = last_checkpoint(args.output) if args.resume else None
    if args.resume and checkpoint is None:
        print(f"{args.output} has no checkpoint yet: the run starts anew\n")
    is_over = checkpoint is not None and is_finished(checkpoint, None if args.max_steps else args.epochs)
    automatic = None if checkpoint else Automatic(args)  # a run goes on with what it has picked
    num_queries = automatic.num_queries if automatic else DetrConfig.from_pretrained(checkpoint).num_queries
    with about(args.data, "see hf-detr check"):
        report = None if args.no_check else print_report(args, data_options(args), num_queries)
        splits = load_splits(args, data_options(args))
    decide_task(args, splits.by_name, report)
    splits = with_taught(args, splits)
    if automatic:
        automatic.settle(splits)
    model, processor = build_model(args, splits, checkpoint)
    if args.batch_size == "auto":
        args.batch_size = decide_batch_size(args, model, processor, splits.train)
        automatic.settle(splits)
    if automatic:
        print(automatic.lines(), end="\n\n")
        write_settings(args)
    interruption, bar = Interruption(), OneBar()
    callbacks = [interruption, bar]
    if args.time_limit is not None:
        callbacks.append(make_time_limit(args, splits, time.monotonic() - begun))
    trainer = make_trainer(args, model, processor, splits, callbacks, is_over)
    try:
        with interruption, closing(bar):
            trainer.train(resume_from_checkpoint=checkpoint)
    except (Stopped, KeyboardInterrupt) as stop:
        what = str(stop) or "stopped at once; the last checkpoint is that of the last epoch that ended."
        print(f"\n{what} Go on with:\n  {_command(args)}")
        return 130
    write_run_folder(args, trainer, processor, splits, report)
    # A process that leaves its group's threads behind may abort at its end, and a wrapped model holds its group.
    accelerator = trainer.accelerator
    del trainer
    accelerator.free_memory()
    accelerator.end_training()
    return 0


def explain(args: argparse.Namespace) -> int:
    """Prints what would be picked, and why."""
    from ._automatic import Automatic
    from ._running import quiet_libraries
    from ._training import load_splits

    quiet_libraries()
    automatic = Automatic(args)
    with about(args.data, "see hf-detr check"):
        automatic.settle(load_splits(args, data_options(args)))
    print(automatic.table())
    return 0


def _check_together(args: argparse.Namespace) -> None:
    """Fills in what depends on other arguments. Raises ValueError for what does not go together."""
    if args.data is None:
        raise ValueError("DATA is missing; name it here or in a --config file.")
    if args.resume and args.explain:
        raise ValueError("--explain: a run goes on with what it has picked, which is in its run.json; omit --resume.")
    if args.output is None and args.resume:
        raise ValueError("--resume: name the run folder to go on with by --output, here or in a --config file.")
    if args.output is None and not args.explain and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("--output RUN is missing: several processes cannot agree on a new folder; name one.")
    if args.backbone is None:
        shaping = [f"--{name.replace('_', '-')}" for name, value in _FRESH.items() if getattr(args, name) != value]
        shaping += ["--pretrained-backbone"] if args.pretrained_backbone else []
        if shaping:
            raise ValueError(f"{', '.join(shaping)}: only for a fresh model; name its --backbone, such as resnet50.")
        args.model = args.model or _CHECKPOINT
    elif args.freeze_detector:
        raise ValueError("--freeze-detector: a fresh model's detector has nothing to keep; name a --model.")
    elif args.model:
        raise ValueError("--model is a whole detector with its backbone; leave out one of --model and --backbone.")
    if args.time_limit is not None and 0 < (args.lr_drop_at or 1) < _EARLIEST_DROP:
        raise ValueError(
            f"--lr-drop-at {args.lr_drop_at:g} with --time-limit: the length of the run is not known so early; give at "
            f"least {_EARLIEST_DROP:g}."
        )
    if args.time_limit is not None and args.augment_until < _EARLIEST_DROP and args.augment in (None, "strong"):
        raise ValueError(f"--augment-until {args.augment_until:g} with --time-limit: give at least {_EARLIEST_DROP:g}.")
    if not args.augment_until:
        raise ValueError("--augment-until 0: from the start there is --augment none.")
    if args.stop_after is not None and args.time_limit is None:
        raise ValueError("--stop-after repeats a run with --time-limit; give that as well, or --max-steps alone.")
    if args.teacher is not None and args.freeze_detector:
        raise ValueError("--teacher tells of boxes, which --freeze-detector does not train; leave one out.")
    if args.unlabelled is not None:
        if args.teacher is None:
            raise ValueError(f"--unlabelled {args.unlabelled}: images are labelled by a --teacher; name one.")
        if not args.unlabelled.is_dir():
            raise ValueError(f"--unlabelled {args.unlabelled}: no such folder; name one with images.")
    if not 0 < args.hold_out < 1:
        raise ValueError(f"--hold-out {args.hold_out:g} is not between 0 and 1; 0.1 is usual.")


def _command(args: argparse.Namespace) -> str:
    words = [word for word in args.command_line if word != "--resume"]
    return shlex.join(["hf-detr", *words, "--resume"])
