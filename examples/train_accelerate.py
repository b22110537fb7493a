"""Train or fine-tune DETR in an explicit Accelerate loop, to run as it is or to copy and change.

    python examples/train_accelerate.py --voc VOC2012 --checkpoint facebook/detr-resnet-50 --epochs 20 --output runs/voc
    accelerate launch --num_processes 8 examples/train_accelerate.py --dataset cppe-5 --backbone resnet50 \
        --pretrained-backbone --mixed-precision bf16 --output runs/cppe-5
    torchrun --nproc_per_node 2 examples/train_accelerate.py --digits 500 ...    # two processes without a GPU
    ... --resume                      # after an interruption: the same command once more

It does what DetrTrainer does, in the open: losses divided by the counts of the whole optimizer step, COCO AP, the best
epoch kept, an average of the weights (--ema), early stopping (--patience), exact resume. docs/fine-tuning.md has more.

The output folder gets `best` (model and processor of the epoch with the highest AP, for `from_pretrained`),
`history.json`, `curves.png`, and in `checkpoints` the last state to resume from. Machines must share it.
"""

import argparse
import json
import shutil
import time
import warnings
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import broadcast, set_seed
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar

from hf_detr import CocoEvaluator, DetrConfig, DetrForObjectDetection, DetrForSegmentation, DetrImageProcessor
from hf_detr.data.collator import DetectionCollator
from hf_detr.data.loading import load_detection_dataset
from hf_detr.data.schema import id2label
from hf_detr.data.synthetic.digits import digit_scenes
from hf_detr.data.transform import DetectionTransform, transform_dataset
from hf_detr.training import evaluate_model, parameter_groups
from hf_detr.training.callbacks import evaluations_since_best
from hf_detr.training.ema import WeightAverage
from hf_detr.training.health import QueryCollapse, warn_if_not_finite
from hf_detr.training.losses import IntervalLosses
from hf_detr.training.recipes import RECIPES, apply_recipe, averages_weights, class_head_rate_of
from hf_detr.training.rows import count_rows
from hf_detr.training.samplers import EpochOrder, ReproducibleSamples
from hf_detr.visualization import plot_curves

# What a line says of an epoch; the history has every part of the loss, of every decoder layer.
SHOWN = {name: (name, ".4g") for name in ("loss", "loss_ce", "loss_bbox", "loss_giou")}
SHOWN |= {"eval_map": ("map", ".3f"), "eval_map_50": ("map_50", ".3f")}
# What may differ when a run is resumed: everything else would make it another run.
MAY_CHANGE = ("resume", "epochs", "output", "workers", "eval_every", "patience")


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
    data.add_argument("--on-bad-image", choices=("error", "drop"), default="error", help="such as damaged or missing")
    data.add_argument("--limit", type=positive, metavar="N", help="only the first N images of each split")
    data.add_argument("--evaluate-on", metavar="SPLIT", help="for AP: validation, else test; train to overfit")
    data.add_argument("--shortest-edge", type=positive, help="pixels; the checkpoint's or 800 unless given")
    data.add_argument("--longest-edge", type=positive, help="pixels; 1333 / 800 of the shortest unless given")
    data.add_argument("--augment", choices=("none", "paper"), default="paper", help="flips, sizes and crops")
    data.add_argument("--group-by-aspect-ratio", action="store_true", help="batches of like shapes: less padding")
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
        model.add_argument("--dropout", type=float, default=0.1),
    ]
    model.add_argument("--masks", action="store_true", help="of the objects, from a checkpoint with or without masks")
    model.add_argument("--queries", type=positive, help="detections per image, at most; the checkpoint's, or 100")

    training = parser.add_argument_group("training (defaults are the paper's)")
    training.add_argument("--epochs", type=positive, default=300)
    training.add_argument("--batch-size", type=positive, default=2, help="images of one forward pass of one process")
    training.add_argument("--gradient-accumulation", type=positive, default=1, metavar="K", help="batches of a step")
    training.add_argument("--learning-rate", type=float, default=1e-4)
    training.add_argument("--backbone-learning-rate", type=float, default=1e-5)
    training.add_argument("--weight-decay", type=float, default=1e-4)
    training.add_argument("--lr-drop", type=positive, default=200, metavar="EPOCH", help="every so often, rates / 10")
    training.add_argument("--clip", type=float, default=0.1, help="largest norm of the gradient")
    training.add_argument("--recipe", choices=tuple(RECIPES), default="paper", help="fast: with help in training")
    training.add_argument("--ema", type=float, metavar="DECAY", help="average the weights; 0: not, whatever the recipe")
    training.add_argument("--patience", type=positive, metavar="N", help="stop after N evaluations without a better AP")
    training.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), help="accelerate launch's unless given")
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
    if args.ema is not None and not 0 <= args.ema < 1:
        parser.error(f"--ema {args.ema} is not between 0 and 1; 0.9997 suits long runs, 0.99 short ones.")
    checkpoints = sorted((args.output / "checkpoints").glob("epoch-*"))
    if args.resume and not checkpoints:
        parser.error(f"--resume: there is no checkpoint in {args.output}/checkpoints; start without --resume.")
    if checkpoints and not args.resume:
        parser.error(f"--output {args.output} holds a run already; go on with it by --resume, or name another folder.")
    return parser, args


def load_data(args: argparse.Namespace) -> tuple[Dataset, Dataset]:
    """The rows to train on and the rows to evaluate on."""
    if args.digits:
        options = {"seed": args.seed, "task": "instance" if args.masks else "detection"}
        splits = {
            "train": digit_scenes(args.digits, **options),
            "validation": digit_scenes(-(-args.digits // 5), split="test", **options),
        }
    else:
        source_format = "voc" if args.voc else "auto"
        # where there is nothing to evaluate on, a tenth of the images is held out as validation
        hold_out = None if args.evaluate_on == "train" else 0.1
        policies = {"on_bad_box": args.on_bad_box, "on_bad_image": args.on_bad_image}
        splits = load_detection_dataset(
            args.voc or args.dataset, source_format, **policies, hold_out=hold_out, seed=args.seed
        )
    if args.evaluate_on is None:
        args.evaluate_on = "validation" if "validation" in splits else "test"
    for split in ("train", args.evaluate_on):
        if split not in splits:
            raise ValueError(f"the data has no split {split!r}, only {sorted(splits)}; choose by --evaluate-on.")
        if not len(splits[split]):
            raise ValueError(f"the split {split!r} of the data holds no image.")
    train, held_out = splits["train"], splits[args.evaluate_on]
    if args.limit:
        train, held_out = (rows.select(range(min(args.limit, len(rows)))) for rows in (train, held_out))
    return train, held_out


def make_model(args: argparse.Namespace, names: dict[int, str]) -> tuple[DetrForObjectDetection, DetrImageProcessor]:
    classes = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    model_class = DetrForSegmentation if args.masks else DetrForObjectDetection
    size = {}  # the checkpoint's, or the paper's
    if args.shortest_edge:
        longest = args.longest_edge or round(args.shortest_edge * 1333 / 800)
        size = {"size": {"shortest_edge": args.shortest_edge, "longest_edge": longest}}
    if args.checkpoint:
        processor = DetrImageProcessor.from_pretrained(args.checkpoint, **size)
        # the class head keeps "no object" and the classes whose names match; others start afresh. Published files turn
        # auxiliary losses off, which change nothing but training
        model = model_class.from_pretrained(args.checkpoint, auxiliary_loss=True, **classes)
        if args.queries:
            model.resize_queries(args.queries)
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
            num_queries=args.queries or 100,
            dropout=args.dropout,
            attention_dropout=args.dropout,
            activation_dropout=args.dropout,
            **classes,
        )
        model = model_class(config)
    apply_recipe(model, args.recipe)
    return model, processor


def make_loader(args: argparse.Namespace, train: Dataset, processor: DetrImageProcessor) -> DataLoader:
    """Order and augmentation follow from seed, epoch and image alone, so that a resumed run sees the same."""
    augment = None if args.augment == "none" else args.augment
    transform = DetectionTransform(processor, augment, masks=args.masks)
    samples = ReproducibleSamples(transform_dataset(train, transform), args.seed)
    sizes_hw = list(zip(train["height"], train["width"], strict=True)) if args.group_by_aspect_ratio else None
    order = EpochOrder(samples, sizes_hw=sizes_hw, batch_size=args.batch_size)
    return DataLoader(samples, args.batch_size, sampler=order, num_workers=args.workers, collate_fn=DetectionCollator())


def check_same_run(args: argparse.Namespace, accelerator: Accelerator) -> None:
    """Writes down what makes this run, or finds it as the run to resume left it."""
    settings = {name: str(value) for name, value in vars(args).items() if name not in MAY_CHANGE}
    settings |= {"mixed_precision": accelerator.mixed_precision, "processes": str(accelerator.num_processes)}
    file = args.output / "settings.json"
    if not args.resume:
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            args.output.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(settings, indent=1) + "\n")
        return
    before = json.loads(file.read_text())
    for name, value in settings.items():
        if before.get(name) != value:
            changed = f"--{name.replace('_', '-')} was {before.get(name)} when the run began, now it is {value}"
            raise ValueError(f"--resume: {changed}; keep the run's arguments, or name another folder for another run.")


class Progress:
    """What a checkpoint holds besides weights, optimizer, schedule and random numbers."""

    def __init__(self, average: WeightAverage | None):
        self.epoch, self.step, self.average = 0, 0, average
        self.history: list[dict] = []  # early stopping and the best epoch follow from it

    def state_dict(self) -> dict:
        average = None if self.average is None else self.average.model.state_dict()
        return {"epoch": self.epoch, "step": self.step, "history": self.history, "average": average}

    def load_state_dict(self, state: dict) -> None:
        self.epoch, self.step, self.history = state["epoch"], state["step"], state["history"]
        if self.average is not None:
            self.average.model.load_state_dict(state["average"])

    def precisions(self) -> list[float]:
        return [entry["eval_map"] for entry in self.history if "eval_map" in entry]

    def evaluations_since_best(self) -> int:
        return evaluations_since_best(self.precisions())


def count_step(accelerator: Accelerator, batches: list[dict]) -> dict[str, torch.Tensor]:
    """Boxes and images of an optimizer step over all its passes and processes: one small sum. Divided by these, the
    losses of the passes add up to the loss of one big batch, however unequal the passes are."""
    labels = [label for batch in batches for label in batch["labels"]]
    counts = torch.tensor([sum(len(one["class_labels"]) for one in labels), len(labels)], device=accelerator.device)
    counts = accelerator.reduce(counts, reduction="sum")
    return {"num_items_in_batch": counts[0], "num_images_in_batch": counts[1]}


def train_epoch(accelerator, model, optimizer, loader, args, progress: Progress, bar: tqdm) -> dict[str, float]:
    """The means of every part of the loss."""
    losses = IntervalLosses()
    loader.set_epoch(progress.epoch)
    model.train()
    stream = iter(loader)
    while batches := list(islice(stream, args.gradient_accumulation)):
        counts = count_step(accelerator, batches)
        losses.begin_step(len(batches))
        progress.step += 1
        for batch in batches:
            # gradients travel between the processes once a step
            with nullcontext() if batch is batches[-1] else accelerator.no_sync(model):
                try:
                    outputs = model(**batch, **counts)
                except ValueError as error:  # numbers that are not finite, labels that cannot be
                    ids = [int(label["image_id"]) for label in batch["labels"]]
                    raise ValueError(f"step {progress.step}, images {ids}: {error}") from error
                # a share of the step's loss; data parallelism averages over the processes, though shares add up
                accelerator.backward(accelerator.num_processes * outputs.loss)
            losses.add({"loss": outputs.loss, **outputs.loss_dict})
        accelerator.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        optimizer.zero_grad()
        if progress.average is not None:
            progress.average.update(accelerator.unwrap_model(model), progress.step)
        bar.update()
    return losses.take(accelerator.num_processes, lambda sums: accelerator.reduce(sums, reduction="mean"))


def evaluate(accelerator, model, processor, rows: Dataset, args: argparse.Namespace, place: str) -> CocoEvaluator:
    """Of the bare model, each process its share of the images."""
    for statistics in model.buffers():  # of live norms, which each process collects for itself
        broadcast(statistics)
    collapse = QueryCollapse()
    hook = model.register_forward_hook(lambda *call: collapse.add(call[-1].logits, call[-1].pred_boxes))
    options = {"batch_size": args.batch_size, "num_workers": args.workers}
    options |= {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
    options["evaluator"] = CocoEvaluator(model.config.id2label, iou_type="segm" if args.masks else "bbox")
    with accelerator.autocast():
        evaluator = evaluate_model(model, processor, rows, **options)
    hook.remove()
    collapse.warn(place)
    return evaluator


def save_best(folder: Path, model, processor, evaluator: CocoEvaluator) -> None:
    partial = folder.with_name("best.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    evaluator.to_json(partial / "metrics.json")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


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
        # without cpu=True, several processes on CPUs would not know of each other
        accelerator = Accelerator(mixed_precision=args.mixed_precision, cpu=not torch.accelerator.is_available())
        if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError("this loop needs whole weights in each process; DetrTrainer trains with FSDP.")
        if not accelerator.is_main_process:
            warnings.simplefilter("ignore")  # one process warns for all
        train, held_out = load_data(args)
        counts = [count_rows(*split, args.on_bad_box) for split in ((train, "train"), (held_out, args.evaluate_on))]
        detector, processor = make_model(args, id2label(train))
        loader = make_loader(args, train, processor)
        detector.to(accelerator.device)
        average = WeightAverage(detector, args.ema) if averages_weights(args.recipe, args.ema) else None
        rates = (args.learning_rate, args.backbone_learning_rate, args.weight_decay)
        rates += (class_head_rate_of(args.recipe, args.learning_rate),)
        optimizer = torch.optim.AdamW(parameter_groups(detector, *rates))
        check_same_run(args, accelerator)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    set_seed(args.seed, device_specific=True)  # dropout differs between processes
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, args.lr_drop)  # once an epoch
    model, optimizer, loader = accelerator.prepare(detector, optimizer, loader)
    progress = Progress(average)
    accelerator.register_for_checkpointing(schedule, progress)
    checkpoints = args.output / "checkpoints"
    if args.resume:
        accelerator.load_state(str(max(checkpoints.glob("epoch-*"))))

    steps = args.epochs * -(-len(loader) // args.gradient_accumulation)
    bar = tqdm(total=steps, initial=progress.step, unit="step", disable=not accelerator.is_main_process)

    def say(text: str) -> None:
        if accelerator.is_main_process:
            bar.write(text)

    say(f"train: {counts[0]}\n{args.evaluate_on}: {counts[1]}\nclasses: {', '.join(id2label(train).values())}")
    if counts[0].most > (queries := detector.config.num_queries):
        say(f"Warning: an image has {counts[0].most} objects and the model {queries} queries; some are never found.")

    for epoch in range(progress.epoch + 1, args.epochs + 1):
        if args.patience and progress.evaluations_since_best() >= args.patience:
            say(f"No better AP in {args.patience} evaluations: stopped after epoch {progress.epoch}.")
            break
        started = time.perf_counter()
        entry = {"epoch": epoch, **train_epoch(accelerator, model, optimizer, loader, args, progress, bar)}
        entry |= {"step": progress.step, "learning_rate": schedule.get_last_lr()[0]}
        entry["images_per_second"] = len(train) / (time.perf_counter() - started)
        warn_if_not_finite(entry, progress.step)
        schedule.step()

        evaluator = None
        evaluated = detector if average is None else average.model
        if epoch % args.eval_every == 0 or epoch == args.epochs:
            evaluator = evaluate(accelerator, evaluated, processor, held_out, args, f"epoch {epoch}")
            entry |= {f"eval_{name}": value for name, value in evaluator.summary().items()}
        progress.epoch = epoch
        progress.history.append(entry)
        shown = [f"{name} {entry[key]:{digits}}" for key, (name, digits) in SHOWN.items() if key in entry]
        say("  ".join([f"epoch {epoch}/{args.epochs}", *shown]))
        if accelerator.is_main_process:
            if evaluator is not None and progress.evaluations_since_best() == 0:
                save_best(args.output / "best", evaluated, processor, evaluator)
            (args.output / "history.json").write_text(json.dumps(progress.history, indent=1) + "\n")
        save_checkpoint(accelerator, checkpoints, epoch)

    bar.close()
    if accelerator.is_main_process:
        plot_curves(progress.history, args.output / "curves.png")
        print(f"Best AP {max(progress.precisions(), default=-1):.3f}: {args.output / 'best'}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
