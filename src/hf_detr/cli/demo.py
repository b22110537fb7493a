"""`hf-detr demo`: fine-tunes the small checkpoint of this package on classes it has never seen, in a few minutes.

Everything is what `hf-detr train` does with a folder of one's own; only the images are generated first.
"""

import argparse
import json
from pathlib import Path

from ._arguments import counting, positive

PASSES = 0.8  # AP50 on unseen scenes; below it something is broken

_EPILOG = """\
The run folder holds what `hf-detr train` leaves, and the generated images in data/. If AP50 ends below 0.8, the exit
code is 1.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `hf-detr demo`."""
    parser.epilog = _EPILOG
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), metavar="DIR", help="the run folder")
    parser.add_argument("--scenes", type=positive, default=600, metavar="N", help="generated images to train on")
    parser.add_argument("--epochs", type=positive, default=15, metavar="N", help="passes over them")
    parser.add_argument("--seed", type=counting, default=0, metavar="N", help="of scenes, weights and order")


def run(args: argparse.Namespace) -> int:
    """Generates, evaluates, trains, evaluates again; 0, or 1 if AP50 stays below 0.8. ValueError for a folder that
    holds another run."""
    import torch  # here, so that `hf-detr --help` does not wait for it
    from datasets import DatasetDict

    from ..checkpoints.tiny import tiny_checkpoint
    from ..data.schema import id2label
    from ..data.synthetic.shapes import shape_scenes
    from ..image_processing_detr import DetrImageProcessor
    from ..modeling_detr import DetrForObjectDetection
    from ..training import evaluate_model
    from . import train
    from ._run_settings import check_run_folder
    from ._running import quiet_libraries

    data = args.output / "data"
    command = [
        str(data), "--model", tiny_checkpoint(), "--output", str(args.output), "--epochs", str(args.epochs),
        "--batch-size", "16", "--learning-rate", "1e-3", "--backbone-learning-rate", "1e-3", "--clip", "1",
        "--augment", "none", "--recipe", "fast", "--seed", str(args.seed), "--workers", "0", "--no-check",
    ]  # fmt: skip
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    training = parser.parse_args(command)
    training.command_line = ["train", *command]
    check_run_folder(training)  # before anything is written
    quiet_libraries()

    print(f"Generating {args.scenes:,} scenes of shapes to train on, and 200 others.", flush=True)
    splits = DatasetDict(
        train=shape_scenes(args.scenes, 96, seed=args.seed),
        validation=shape_scenes(80, 96, seed=args.seed + 1),
        test=shape_scenes(120, 96, seed=args.seed + 1, split="test"),
    )
    splits.save_to_disk(data)

    torch.manual_seed(args.seed)
    model = DetrForObjectDetection.from_pretrained(tiny_checkpoint(), id2label=id2label(splits["train"]))
    processor = DetrImageProcessor.from_pretrained(tiny_checkpoint())
    before = evaluate_model(model, processor, splits["test"], batch_size=32).compute()
    print(f"Before: AP {before['map']:.3f}, AP50 {before['map_50']:.3f}. The checkpoint knows digits, not shapes.\n")

    code = train.train(training)
    if code:
        return code
    after = _metrics_of(args.output)
    print(f"\nBefore: AP {before['map']:.3f}, AP50 {before['map_50']:.3f}")
    print(f"After:  AP {after['map']:.3f}, AP50 {after['map_50']:.3f}")
    print(f"Look at {args.output / 'predictions.png'}: orange boxes found, dashed blue boxes true.")
    if after["map_50"] >= PASSES:
        return 0
    print(f"AP50 is {after['map_50']:.3f}, below {PASSES}: train longer (--epochs) or on more scenes (--scenes).")
    return 1


def _metrics_of(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["metrics"]
