"""Train or fine-tune DETR in an explicit Accelerate loop, to run as it is or to copy and change.

    python examples/train_accelerate.py --voc VOC2012 --checkpoint facebook/detr-resnet-50 --epochs 20 --output runs/voc
    accelerate launch --num_processes 8 examples/train_accelerate.py --dataset cppe-5 --backbone resnet50 \
        --pretrained-backbone --mixed-precision bf16 --output runs/cppe-5
    torchrun --nproc_per_node 2 examples/train_accelerate.py --digits 500 ...    # two processes without a GPU
    ... --resume                      # after an interruption: the same command once more

The output folder gets `best` (model and processor of the epoch with the highest AP, for `from_pretrained`),
`history.json`, `curves.png`, and in `checkpoints` the last state to resume from.
"""

import argparse
import json
import shutil
import time
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, broadcast, set_seed
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar

from hf_detr import DetrConfig, DetrForObjectDetection, DetrImageProcessor
from hf_detr.data.collator import DetectionCollator
from hf_detr.data.digits import digit_scenes
from hf_detr.data.loading import load_detection_dataset
from hf_detr.data.schema import id2label
from hf_detr.data.transform import DetectionTransform, transform_dataset
from hf_detr.training import evaluate_model, parameter_groups
from hf_detr.visualization import plot_curves

LOSSES = ("loss", "loss_ce", "loss_bbox", "loss_giou")  # what the history holds; the parts are the last layer's
APS = ("map", "map_50")
# What may differ when a run is resumed: everything else would make it another run.
MAY_CHANGE = ("resume", "epochs", "output", "workers", "eval_every")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1.")
    return int(text)


def parse_arguments() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        usage="%(prog)s (--voc DIR | --dataset NAME_OR_FOLDER | --digits N) --output DIR [options]; see --help",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    data = parser.add_argument_group("data")
    source = data.add_mutually_exclusive_group(required=True)
    source.add_argument("--voc", metavar="DIR", help="a Pascal VOC folder")
    source.add_argument("--dataset", metavar="NAME_OR_FOLDER", help="a Hub name, save_to_disk folder, Parquet, ...")
    source.add_argument("--digits", type=positive, metavar="N", help="N generated scenes, N / 5 more to evaluate on")
    data.add_argument("--on-bad-box", choices=("error", "drop", "clip"), default="error", help="such as without area")
    data.add_argument("--limit", type=positive, metavar="N", help="only the first N images of each split")
    data.add_argument("--evaluate-on", default="validation", metavar="SPLIT", help="the split for AP; train to overfit")
    data.add_argument("--shortest-edge", type=positive, help="pixels; the checkpoint's or 800 unless given")
    data.add_argument("--longest-edge", type=positive, help="pixels; 1333 / 800 of the shortest unless given")
    data.add_argument("--augment", choices=("none", "paper"), default="paper", help="flips, sizes and crops")
    data.add_argument("--workers", type=int, default=2, help="processes that load images, for each training process")

    model = parser.add_argument_group("model")
    model.add_argument("--checkpoint", help="a whole DETR to start from, Hub name or folder; else a fresh model of:")
    fresh = [
        model.add_argument("--backbone", default="resnet50", help="any timm network with feature maps"),
        model.add_argument("--pretrained-backbone", action="store_true", help="fetch timm's weights"),
        model.add_argument("--live-norms", action="store_true", help="train all of the backbone, batch norms as well"),
        model.add_argument("--output-stride", type=int, choices=(8, 16, 32), default=32, help="of the feature map"),
        model.add_argument("--d-model", type=positive, default=256),
        model.add_argument("--heads", type=positive, default=8),
        model.add_argument("--ffn-dim", type=positive, default=2048),
        model.add_argument("--encoder-layers", type=int, default=6),
        model.add_argument("--decoder-layers", type=positive, default=6),
        model.add_argument("--queries", type=positive, default=100, help="detections per image, at most"),
        model.add_argument("--dropout", type=float, default=0.1),
    ]

    training = parser.add_argument_group("training (defaults are the paper's)")
    training.add_argument("--epochs", type=positive, default=300)
    training.add_argument("--batch-size", type=positive, default=2, help="images of one forward pass of one process")
    training.add_argument(
        "--gradient-accumulation", type=positive, default=1, metavar="K", help="forward passes of a step"
    )
    training.add_argument("--learning-rate", type=float, default=1e-4)
    training.add_argument("--backbone-learning-rate", type=float, default=1e-5)
    training.add_argument("--weight-decay", type=float, default=1e-4)
    training.add_argument("--lr-drop", type=positive, default=200, metavar="EPOCH", help="every so often, rates / 10")
    training.add_argument("--clip", type=float, default=0.1, help="largest norm of the gradient")
    training.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), default="no")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--eval-every", type=positive, default=1, metavar="EPOCHS", help="and after the last")
    training.add_argument("--output", type=Path, required=True, metavar="DIR")
    training.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the output folder")

    args = parser.parse_args()
    for action in fresh:
        if args.checkpoint and getattr(args, action.dest) != action.default:
            parser.error(f"{action.option_strings[0]} shapes a fresh model; leave it out with --checkpoint.")
    if args.longest_edge and not args.shortest_edge:
        parser.error("--longest-edge needs --shortest-edge beside it.")
    if args.longest_edge and args.longest_edge < args.shortest_edge:
        parser.error(f"--longest-edge {args.longest_edge} is below --shortest-edge {args.shortest_edge}.")
    if not args.clip > 0:
        parser.error(f"--clip {args.clip} is not above 0; to clip nothing, pass inf.")
    checkpoints = sorted((args.output / "checkpoints").glob("epoch-*"))
    if args.resume and not checkpoints:
        parser.error(f"--resume: there is no checkpoint in {args.output}/checkpoints; start without --resume.")
    if checkpoints and not args.resume:
        parser.error(f"--output {args.output} holds a run already; go on with it by --resume, or name another folder.")
    return parser, args


def load_data(args: argparse.Namespace):
    """The rows to train on and the rows to evaluate on."""
    if args.digits:
        splits = {
            "train": digit_scenes(args.digits, seed=args.seed),
            "validation": digit_scenes(-(-args.digits // 5), seed=args.seed, split="test"),
        }
    else:
        source_format = "voc" if args.voc else "auto"
        splits = load_detection_dataset(args.voc or args.dataset, source_format, on_bad_box=args.on_bad_box)
    for split in ("train", args.evaluate_on):
        if split not in splits:
            raise ValueError(f"the data has no split {split!r}, only {sorted(splits)}; choose by --evaluate-on.")
    train, held_out = splits["train"], splits[args.evaluate_on]
    if args.limit:
        train, held_out = (rows.select(range(min(args.limit, len(rows)))) for rows in (train, held_out))
    return train, held_out


def make_model(args: argparse.Namespace, names: dict[int, str]) -> tuple[DetrForObjectDetection, DetrImageProcessor]:
    classes = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    size = {}  # the checkpoint's, or the paper's
    if args.shortest_edge:
        longest = args.longest_edge or round(args.shortest_edge * 1333 / 800)
        size = {"size": {"shortest_edge": args.shortest_edge, "longest_edge": longest}}
    if args.checkpoint:
        processor = DetrImageProcessor.from_pretrained(args.checkpoint, **size)
        # the class head keeps "no object" and the classes whose names match; others start afresh
        model = DetrForObjectDetection.from_pretrained(args.checkpoint, **classes)
    else:
        processor = DetrImageProcessor(**size)
        config = DetrConfig(
            backbone=args.backbone,
            backbone_kwargs={} if args.output_stride == 32 else {"output_stride": args.output_stride},
            use_pretrained_backbone=args.pretrained_backbone,
            freeze_backbone_norms=not args.live_norms,
            freeze_backbone_until=None if args.live_norms else "auto",
            d_model=args.d_model,
            encoder_layers=args.encoder_layers,
            decoder_layers=args.decoder_layers,
            encoder_attention_heads=args.heads,
            decoder_attention_heads=args.heads,
            encoder_ffn_dim=args.ffn_dim,
            decoder_ffn_dim=args.ffn_dim,
            num_queries=args.queries,
            dropout=args.dropout,
            attention_dropout=args.dropout,
            activation_dropout=args.dropout,
            **classes,
        )
        model = DetrForObjectDetection(config)
    return model, processor


class Progress:
    """What a checkpoint holds besides weights, optimizer, schedule and random numbers."""

    def __init__(self, args: argparse.Namespace):
        self.epoch, self.history, self.best_map = 0, [], -2.0  # AP is -1 where there is nothing to find
        self.arguments = {name: str(value) for name, value in vars(args).items() if name not in MAY_CHANGE}

    def state_dict(self) -> dict:
        return dict(vars(self))

    def load_state_dict(self, state: dict) -> None:
        for name, value in self.arguments.items():
            if state["arguments"].get(name) != value:
                raise ValueError(
                    f"--resume: --{name.replace('_', '-')} was {state['arguments'].get(name)} when the run began, now "
                    f"it is {value}; resume with the arguments of the run, or start another in another folder."
                )
        vars(self).update(state)


def count_step(accelerator: Accelerator, batches: list[dict]) -> dict[str, torch.Tensor]:
    """Boxes and images of an optimizer step over all its forward passes and processes: one small sum.

    Divided by these, the losses of the passes add up to the loss of one big batch, however unequal the passes are.
    """
    labels = [label for batch in batches for label in batch["labels"]]
    counts = torch.tensor([sum(len(one["class_labels"]) for one in labels), len(labels)], device=accelerator.device)
    counts = accelerator.reduce(counts, reduction="sum")
    return {"num_items_in_batch": counts[0], "num_images_in_batch": counts[1]}


def save_checkpoint(accelerator: Accelerator, folder: Path, epoch: int) -> None:
    """All or nothing: a process killed while it writes leaves the checkpoint before in place."""
    partial = folder / "partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        partial.rename(folder / f"epoch-{epoch:05d}")
        for older in sorted(folder.glob("epoch-*"))[:-1]:
            shutil.rmtree(older)


def main() -> None:
    parser, args = parse_arguments()
    disable_progress_bar()  # of saving: one bar is enough
    set_seed(args.seed)  # the same fresh weights in every process
    try:
        accelerator = Accelerator(
            mixed_precision=args.mixed_precision,
            cpu=not torch.accelerator.is_available(),  # else several processes on CPUs would not know of each other
            # the order of the images follows from seed and epoch alone, so that a resumed run sees the same
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.seed),
        )
        train, held_out = load_data(args)
        detector, processor = make_model(args, id2label(train))
        augment = None if args.augment == "none" else args.augment
        loader = DataLoader(
            transform_dataset(train, DetectionTransform(processor, augment)),
            batch_size=args.batch_size,
            shuffle=True,
            num_workers=args.workers,
            collate_fn=DetectionCollator(),
        )
        optimizer = torch.optim.AdamW(
            parameter_groups(detector, args.learning_rate, args.backbone_learning_rate, args.weight_decay)
        )
    except (ValueError, OSError) as error:
        parser.error(str(error))
    set_seed(args.seed, device_specific=True)  # dropout and augmentation differ between processes
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, args.lr_drop)  # once an epoch
    model, optimizer, loader = accelerator.prepare(detector, optimizer, loader)
    progress = Progress(args)
    accelerator.register_for_checkpointing(schedule, progress)
    checkpoints = args.output / "checkpoints"
    if args.resume:
        try:
            accelerator.load_state(str(max(checkpoints.glob("epoch-*"))))
        except ValueError as error:
            parser.error(str(error))

    steps_per_epoch = -(-len(loader) // args.gradient_accumulation)
    bar = tqdm(
        total=args.epochs * steps_per_epoch,
        initial=progress.epoch * steps_per_epoch,
        unit="step",
        disable=not accelerator.is_main_process,
    )

    def say(text: str) -> None:
        if accelerator.is_main_process:
            bar.write(text)

    most = max(len(objects["category"]) for objects in train["objects"])
    say(f"{len(train)} images to train on, {len(held_out)} to evaluate on, classes {id2label(train)}")
    if most > detector.config.num_queries:
        say(f"Warning: an image has {most} objects, but the model only {detector.config.num_queries} queries.")

    for epoch in range(progress.epoch + 1, args.epochs + 1):
        started = time.perf_counter()
        sums = torch.zeros(len(LOSSES), device=accelerator.device)
        loader.set_epoch(epoch)
        model.train()
        stream = iter(loader)
        while batches := list(islice(stream, args.gradient_accumulation)):
            # one pass a step: the model counts by itself; else its losses are shares of the step's, which data
            # parallelism averages over the processes though they should add up
            counts = count_step(accelerator, batches) if args.gradient_accumulation > 1 else {}
            share = accelerator.num_processes if counts else 1
            for batch in batches:
                # gradients travel between the processes once a step
                with nullcontext() if batch is batches[-1] else accelerator.no_sync(model):
                    outputs = model(**batch, **counts)
                    accelerator.backward(share * outputs.loss)
                outputs.loss_dict["loss"] = outputs.loss
                sums += share * torch.stack([outputs.loss_dict[name].detach() for name in LOSSES])
            accelerator.clip_grad_norm_(model.parameters(), args.clip)
            optimizer.step()
            optimizer.zero_grad()
            bar.update()
        means = accelerator.reduce(sums / steps_per_epoch, reduction="mean").tolist()
        seconds = time.perf_counter() - started
        entry = {"epoch": epoch, **dict(zip(LOSSES, means, strict=True)), "learning_rate": schedule.get_last_lr()[0],
                 "images_per_second": len(train) / seconds}  # fmt: skip
        schedule.step()

        if epoch % args.eval_every == 0 or epoch == args.epochs:
            for statistics in detector.buffers():  # of live norms, which each process collects for itself
                broadcast(statistics)
            evaluator = evaluate_model(
                detector,
                processor,
                held_out,
                batch_size=args.batch_size,
                num_workers=args.workers,
                process_index=accelerator.process_index,
                num_processes=accelerator.num_processes,
            )
            entry |= {f"eval_{name}": value for name, value in evaluator.summary().items()}
            if entry["eval_map"] > progress.best_map and accelerator.is_main_process:
                detector.save_pretrained(args.output / "best")
                processor.save_pretrained(args.output / "best")
                evaluator.to_json(args.output / "best" / "metrics.json")
            progress.best_map = max(progress.best_map, entry["eval_map"])
        progress.epoch = epoch
        progress.history.append(entry)
        line = f"epoch {epoch}/{args.epochs}" + "".join(f"  {name} {entry[name]:.4g}" for name in LOSSES)
        say(line + "".join(f"  {name} {entry[f'eval_{name}']:.3f}" for name in APS if f"eval_{name}" in entry))
        save_checkpoint(accelerator, checkpoints, epoch)
        if accelerator.is_main_process:
            (args.output / "history.json").write_text(json.dumps(progress.history, indent=1) + "\n")

    bar.close()
    if accelerator.is_main_process and progress.history:
        plot_curves(progress.history, args.output / "curves.png")
        print(f"Best AP {progress.best_map:.3f}: {args.output / 'best'}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
