"""`hf-detr demo`: fine-tunes the small checkpoint of this package on scenes it has never seen, in a few minutes.

Everything is what `hf-detr train` does with a folder of one's own; only the images are generated first. Boxes are those
of shapes, classes that are new to the checkpoint. Panoptic scenes have digits, which it knows, on textures, which are
stuff: as in the paper the detector learns the boxes of both, and then, frozen, is given masks.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from ._arguments import counting, positive

# the number that is printed before and after, on unseen scenes -> what it reaches, below which something is broken
PASSES = {"detection": 0.8, "panoptic": 0.2}
_NUMBERS = {"detection": {"AP": "map", "AP50": "map_50"}, "panoptic": {"PQ": "pq"}}
_KNOWS = {"detection": "digits, not shapes", "panoptic": "digits, neither textures nor masks"}

_EPILOG = f"""\
The run folder holds what `hf-detr train` leaves, and the generated images in data/; with --task panoptic also the run
that learnt the boxes, in detector/. If AP50 ends below {PASSES["detection"]}, or PQ below {PASSES["panoptic"]}, the
exit code is 1.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `hf-detr demo`."""
    parser.epilog = _EPILOG
    parser.add_argument("--task", choices=tuple(PASSES), default="detection", help="boxes (default), or segments")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), metavar="DIR", help="the run folder")
    parser.add_argument("--scenes", type=positive, default=600, metavar="N", help="generated images to train on")
    parser.add_argument("--epochs", type=positive, default=15, metavar="N", help="passes over them, for each training")
    parser.add_argument("--seed", type=counting, default=0, metavar="N", help="of scenes, weights and order")


def run(args: argparse.Namespace) -> int:
    """Generates, evaluates, trains, evaluates again; 0, or 1 if too little was learnt. ValueError for a folder that
    holds another run."""
    from datasets import DatasetDict  # here, so that `hf-detr --help` does not wait for it

    from ..data.synthetic.digits import digit_scenes
    from ..data.synthetic.shapes import shape_scenes
    from . import train
    from ._run_settings import check_run_folder
    from ._running import quiet_libraries

    trainings = _trainings(args)
    check_run_folder(trainings[-1])  # before anything is written
    quiet_libraries()

    what = "shapes" if args.task == "detection" else "digits on textures"
    print(f"Generating {args.scenes:,} scenes of {what} to train on, and 200 others.", flush=True)
    scenes = shape_scenes if args.task == "detection" else digit_scenes
    options: dict[str, Any] = {"image_size": 96, "task": args.task}
    splits = DatasetDict(
        train=scenes(args.scenes, seed=args.seed, **options),
        validation=scenes(80, seed=args.seed + 1, **options),
        test=scenes(120, seed=args.seed + 1, split="test", **options),
    )
    splits.save_to_disk(args.output / "data")

    before = _of_the_checkpoint(args, splits)
    print(f"Before: {_in_words(before, args.task)}. The checkpoint knows {_KNOWS[args.task]}.\n")
    for training in trainings:
        code = train.train(training)
        if code:
            return code
    after = json.loads((args.output / "metrics.json").read_text(encoding="utf-8"))["metrics"]
    print(f"\nBefore: {_in_words(before, args.task)}")
    print(f"After:  {_in_words(after, args.task)}")
    print(f"Look at {args.output / 'predictions.png'}: what was found, and what is true.")
    name, key = list(_NUMBERS[args.task].items())[-1]
    if after[key] >= PASSES[args.task]:
        return 0
    print(
        f"{name} is {after[key]:.3f}, below {PASSES[args.task]}: train longer (--epochs) or on more scenes (--scenes)."
    )
    return 1


def _trainings(args: argparse.Namespace) -> list[argparse.Namespace]:
    """The arguments of `hf-detr train`, as one would give them."""
    from ..checkpoints.tiny import tiny_checkpoint
    from . import train

    words = [
        str(args.output / "data"), "--epochs", str(args.epochs), "--clip", "1", "--augment", "none", "--recipe", "fast",
        "--backbone-learning-rate", "1e-3", "--seed", str(args.seed), "--workers", "0", "--no-check",
    ]  # fmt: skip
    boxes = ["--task", "detection", "--batch-size", "16", "--learning-rate", "1e-3"]
    masks = ["--task", "panoptic", "--freeze-detector", "--batch-size", "8", "--learning-rate", "3e-3"]
    first = args.output if args.task == "detection" else args.output / "detector"
    commands = [[*words, "--model", tiny_checkpoint(), "--output", str(first), *boxes]]
    if args.task == "panoptic":
        commands.append([*words, "--model", str(first), "--output", str(args.output), *masks])
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    trainings = [parser.parse_args(command) for command in commands]
    for training, command in zip(trainings, commands, strict=True):
        training.command_line = ["train", *command]
    return trainings


def _of_the_checkpoint(args: argparse.Namespace, splits: Any) -> dict[str, Any]:
    """What it is measured at, with a class head, and with a mask head where one is needed, of random weights."""
    import torch

    from ..checkpoints.tiny import tiny_checkpoint
    from ..data.schema import id2label, stuff_ids
    from ..evaluation import evaluator_of
    from ..image_processing_detr import DetrImageProcessor
    from ..modeling_detr import DetrForObjectDetection
    from ..modeling_detr_segmentation import DetrForSegmentation
    from ..training import evaluate_model

    torch.manual_seed(args.seed)
    names = id2label(splits["train"])
    if args.task == "detection":
        model = DetrForObjectDetection.from_pretrained(tiny_checkpoint(), id2label=names)
    else:
        model = DetrForSegmentation.from_detector(tiny_checkpoint(), id2label=names, freeze_detector=False)
    processor = DetrImageProcessor.from_pretrained(tiny_checkpoint())
    evaluator = evaluator_of(args.task, names, stuff=stuff_ids(splits["train"]))
    return evaluate_model(model, processor, splits["test"], batch_size=32, evaluator=evaluator).compute()


def _in_words(metrics: dict[str, Any], task: str) -> str:
    return ", ".join(f"{name} {metrics[key]:.3f}" for name, key in _NUMBERS[task].items())
