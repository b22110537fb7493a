"""Train or fine-tune DETR in an explicit Accelerate loop, to run as it is or to copy and change.

    python examples/train_accelerate.py --voc VOC2012 --checkpoint facebook/detr-resnet-50 --epochs 20 --output runs/voc
    accelerate launch --num_processes 8 --mixed_precision bf16 examples/train_accelerate.py --dataset cppe-5 \
        --backbone resnet50 --pretrained-backbone --output runs/cppe-5
    torchrun --nproc_per_node 2 examples/train_accelerate.py --digits 500 ...    # two processes without a GPU
    ... --resume                      # after an interruption: the same command once more

The output folder, which machines must share, gets `best` (model and processor of the epoch with the highest AP, for
`from_pretrained`), `history.json`, `curves.png`, and in `checkpoints` the last state. docs/fine-tuning.md has more.
"""

import argparse
import json
import shutil
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
from hf_detr.training import MuonAdamW, evaluate_model, parameter_groups
from hf_detr.training.callbacks import evaluations_since_best
from hf_detr.training.ema import WeightAverage
from hf_detr.training.health import QueryCollapse, warn_if_not_finite
from hf_detr.training.losses import IntervalLosses
from hf_detr.training.recipes import RECIPES, apply_recipe, averages_weights, class_head_rate_of, uses_muon
from hf_detr.training.rows import count_rows
from hf_detr.training.samplers import EpochOrder, ReproducibleSamples
from hf_detr.visualization import plot_curves

SHOWN = ("loss", "loss_ce", "loss_bbox", "loss_giou", "eval_map", "eval_map_50")  # the history has every part
MAY_CHANGE = ("resume", "epochs", "output", "workers", "eval_every", "patience")  # else it would be another run


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1.")
    return int(text)


def parse_arguments() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    usage = "%(prog)s (--dataset NAME_OR_FOLDER | --digits N) --output DIR [options]; see --help"
    parser = argparse.ArgumentParser(usage=usage, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", "--voc", help="a folder of any usual format, or a Hub name")
    source.add_argument("--digits", type=positive, metavar="N", help="N generated scenes, N / 5 more to evaluate on")
    parser.add_argument("--on-bad-box", choices=("error", "drop", "clip"), default="error", help="such as without area")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N images of each split")
    parser.add_argument("--evaluate-on", metavar="SPLIT", help="for AP: validation, else test; train to overfit")
    parser.add_argument("--shortest-edge", type=positive, help="pixels; the checkpoint's or 800 unless given")
    parser.add_argument("--augment", choices=("none", "paper"), default="paper", help="flips, sizes and crops")
    parser.add_argument("--group-by-aspect-ratio", action="store_true", help="batches of like shapes: less padding")
    parser.add_argument("--workers", type=int, default=2, help="processes that load images, for each training process")
    parser.add_argument("--checkpoint", help="a whole DETR to start from, Hub name or folder; else a fresh model on:")
    parser.add_argument("--backbone", help="any timm network with feature maps; resnet50 unless given")
    parser.add_argument("--pretrained-backbone", action="store_true", help="fetch timm's weights; else all trains")
    parser.add_argument("--config", type=json.loads, metavar="JSON", help="other fields of a fresh model's DetrConfig")
    parser.add_argument("--queries", type=positive, help="detections per image, at most; the checkpoint's, or 100")
    parser.add_argument("--masks", action="store_true", help="of the objects, from a checkpoint with or without masks")
    parser.add_argument("--epochs", type=positive, default=300)
    parser.add_argument("--batch-size", type=positive, default=2, help="images of one forward pass of one process")
    parser.add_argument("--gradient-accumulation", type=positive, default=1, metavar="K", help="batches of a step")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--backbone-learning-rate", type=float, default=1e-5)
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--lr-drop", type=positive, default=200, metavar="EPOCH", help="every so often, rates / 10")
    parser.add_argument("--clip", type=float, default=0.1, help="largest norm of the gradient")
    parser.add_argument("--recipe", choices=tuple(RECIPES), default="paper", help="fast: training-only parts as well")
    parser.add_argument("--ema", type=float, metavar="DECAY", help="average the weights; 0: not, whatever the recipe")
    parser.add_argument("--patience", type=positive, metavar="N", help="stop after N evaluations without a better AP")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval-every", type=positive, default=1, metavar="EPOCHS", help="and after the last")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the output folder")
    args = parser.parse_args()
    if args.checkpoint and (args.backbone or args.config):
        parser.error("--backbone and --config shape a fresh model; leave them out with --checkpoint.")
    if not args.clip > 0:
        parser.error(f"--clip {args.clip} is not above 0; to clip nothing, pass inf.")
    if args.ema is not None and not 0 <= args.ema < 1:
        parser.error(f"--ema {args.ema} is not between 0 and 1; 0.9997 suits long runs, 0.99 short ones.")
    if args.resume != any((args.output / "checkpoints").glob("epoch-*")):
        found = "no checkpoint: leave out --resume" if args.resume else "a run already: --resume it, or name another"
        parser.error(f"--output {args.output} holds {found}.")
    return parser, args


def load_data(args: argparse.Namespace) -> tuple[Dataset, Dataset]:
    """The rows to train on and the rows to evaluate on."""
    if args.digits:
        options = {"seed": args.seed, "task": "instance" if args.masks else "detection"}
        splits = {"train": digit_scenes(args.digits, **options)}
        splits["validation"] = digit_scenes(-(-args.digits // 5), split="test", **options)
    else:  # where there is nothing to evaluate on, a tenth of the images is held out as validation
        options = {"hold_out": None if args.evaluate_on == "train" else 0.1, "seed": args.seed}
        splits = load_detection_dataset(args.dataset, on_bad_box=args.on_bad_box, **options)
    args.evaluate_on = args.evaluate_on or ("validation" if "validation" in splits else "test")
    for split in ("train", args.evaluate_on):
        if not splits.get(split):
            raise ValueError(f"the data has no split {split!r} with images, only {sorted(splits)}; see --evaluate-on.")
        splits[split] = splits[split].select(range(len(splits[split]))[: args.limit])
    return splits["train"], splits[args.evaluate_on]


def make_model(args: argparse.Namespace, names: dict[int, str]) -> tuple[DetrForObjectDetection, DetrImageProcessor]:
    classes = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    model_class = DetrForSegmentation if args.masks else DetrForObjectDetection
    size = {"size": args.shortest_edge, "max_size": args.shortest_edge * 1333 // 800} if args.shortest_edge else {}
    if args.checkpoint:
        processor = DetrImageProcessor.from_pretrained(args.checkpoint, class_thresholds={}, **size)  # of other weights
        # the class head keeps "no object" and the classes whose names match; others start afresh. Published files turn
        # auxiliary losses off, which change nothing but training
        model = model_class.from_pretrained(args.checkpoint, auxiliary_loss=True, **classes)
    else:
        processor = DetrImageProcessor(**size)
        # random norms and stages must learn; published ones are frozen as in the paper
        thawed = {} if args.pretrained_backbone else {"freeze_backbone_norms": False, "freeze_backbone_until": None}
        fields = {"backbone": args.backbone or "resnet50", "use_pretrained_backbone": args.pretrained_backbone}
        model = model_class(DetrConfig(**fields | thawed | (args.config or {}) | classes))
    if args.queries:
        model.resize_queries(args.queries)
    apply_recipe(model, args.recipe)
    return model, processor


def make_loader(args: argparse.Namespace, train: Dataset, processor: DetrImageProcessor) -> DataLoader:
    """Order and augmentation follow from seed, epoch and image alone, so that a resumed run sees the same."""
    augment = None if args.augment == "none" else args.augment
    rows = transform_dataset(train, DetectionTransform(processor, augment, masks=args.masks))
    samples = ReproducibleSamples(rows, args.seed)
    sizes_hw = list(zip(train["height"], train["width"], strict=True)) if args.group_by_aspect_ratio else None
    order = EpochOrder(samples, sizes_hw=sizes_hw, batch_size=args.batch_size)
    return DataLoader(samples, args.batch_size, sampler=order, num_workers=args.workers, collate_fn=DetectionCollator())


def check_same_run(args: argparse.Namespace, accelerator: Accelerator) -> None:
    """Writes down what makes this run, or finds it as the run to resume left it."""
    settings = {name: str(value) for name, value in vars(args).items() if name not in MAY_CHANGE}
    settings |= {"mixed_precision": accelerator.mixed_precision, "processes": str(accelerator.num_processes)}
    file = args.output / "settings.json"
    before = json.loads(file.read_text()) if args.resume else settings
    for name, value in settings.items():
        if before.get(name) != value:
            changed = f"--{name.replace('_', '-')} was {before.get(name)} when the run began, now it is {value}"
            raise ValueError(f"--resume: {changed}; another run wants another --output.")
    if accelerator.is_main_process and not args.resume:
        args.output.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings, indent=1) + "\n")


def count_step(accelerator: Accelerator, batches: list[dict]) -> dict[str, torch.Tensor]:
    """Boxes and images of an optimizer step over all its passes and processes: one small sum. Divided by these, the
    losses of the passes add up to the loss of one big batch, however unequal the passes are."""
    labels = [label for batch in batches for label in batch["labels"]]
    counts = torch.tensor([sum(len(one["class_labels"]) for one in labels), len(labels)], device=accelerator.device)
    counts = accelerator.reduce(counts, reduction="sum")
    return {"num_items_in_batch": counts[0], "num_images_in_batch": counts[1]}


def train_epoch(accelerator, model, optimizer, loader, args, average: WeightAverage | None, step: int, bar) -> tuple:
    """The number of the last step, of which `step` were made before, and the means of every part of the loss."""
    losses, stream = IntervalLosses(), iter(loader)
    model.train()
    while batches := list(islice(stream, args.gradient_accumulation)):
        counts, step = count_step(accelerator, batches), step + 1
        losses.begin_step(len(batches))
        for batch in batches:
            # gradients travel between the processes once a step
            with nullcontext() if batch is batches[-1] else accelerator.no_sync(model):
                try:
                    outputs = model(**batch, **counts)
                except ValueError as error:  # numbers that are not finite, labels that cannot be
                    ids = [int(label["image_id"]) for label in batch["labels"]]
                    raise ValueError(f"step {step}, images {ids}: {error}") from error
                # a share of the step's loss; data parallelism averages over the processes, though shares add up
                accelerator.backward(accelerator.num_processes * outputs.loss)
            losses.add({"loss": outputs.loss, **outputs.loss_dict})
        accelerator.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        optimizer.zero_grad()
        if average is not None:
            average.update(accelerator.unwrap_model(model), step)
        bar.update()
    return step, losses.take(accelerator.num_processes, lambda sums: accelerator.reduce(sums, "mean"))


def evaluate(accelerator, model, processor, rows: Dataset, args: argparse.Namespace, place: str) -> CocoEvaluator:
    """Of the bare model, each process its share of the images."""
    for statistics in model.buffers():  # of live norms, which each process collects for itself
        broadcast(statistics)
    collapse = QueryCollapse()
    hook = model.register_forward_hook(lambda *call: collapse.add(call[-1].logits, call[-1].pred_boxes))
    evaluator = CocoEvaluator(model.config.id2label, iou_type="segm" if args.masks else "bbox")
    share = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
    loading = {"batch_size": args.batch_size, "num_workers": args.workers}
    with accelerator.autocast():
        evaluate_model(model, processor, rows, evaluator=evaluator, **loading, **share)
    hook.remove()
    collapse.warn(place)
    return evaluator


def save_checkpoint(accelerator: Accelerator, folder: Path, history: list[dict]) -> None:
    """All or nothing: a process killed while it writes leaves the checkpoint before in place."""
    partial = folder / "partial"
    accelerator.save_state(str(partial))  # over what a killed process left
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (partial / "history.json").write_text(json.dumps(history))
        partial.rename(folder / f"epoch-{len(history):05d}")
        for older in sorted(folder.glob("epoch-*"))[:-1]:
            shutil.rmtree(older)


def main() -> None:
    parser, args = parse_arguments()
    disable_progress_bar()  # of saving: one bar is enough
    set_seed(args.seed)  # the same fresh weights in every process
    try:
        # without cpu=True, several processes on CPUs would not know of each other
        accelerator = Accelerator(cpu=not torch.accelerator.is_available())
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
        optimizer = MuonAdamW(parameter_groups(detector, *rates, muon=uses_muon(args.recipe, None)))
        check_same_run(args, accelerator)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    set_seed(args.seed, device_specific=True)  # dropout differs between processes
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, args.lr_drop)  # once an epoch
    model, optimizer, loader = accelerator.prepare(detector, optimizer, loader)
    evaluated = detector if average is None else average.model
    accelerator.register_for_checkpointing(schedule, *([] if average is None else [evaluated]))
    history, checkpoints = [], args.output / "checkpoints"  # an entry an epoch
    if args.resume:
        last = max(checkpoints.glob("epoch-*"))
        accelerator.load_state(str(last))
        history = json.loads((last / "history.json").read_text())
    precisions = [entry["eval_map"] for entry in history if "eval_map" in entry]
    step = history[-1]["step"] if history else 0
    steps = args.epochs * -(-len(loader) // args.gradient_accumulation)
    bar = tqdm(total=steps, initial=step, unit="step", disable=not accelerator.is_main_process)
    say = accelerator.on_main_process(bar.write)
    say(f"train: {counts[0]}\n{args.evaluate_on}: {counts[1]}\nclasses: {', '.join(id2label(train).values())}")
    if counts[0].most > (queries := detector.config.num_queries):
        say(f"Warning: an image has {counts[0].most} objects and the model {queries} queries; some are never found.")

    for epoch in range(len(history) + 1, args.epochs + 1):
        if args.patience and evaluations_since_best(precisions) >= args.patience:
            say(f"No better AP in {args.patience} evaluations: stopped after epoch {epoch - 1}.")
            break
        loader.set_epoch(epoch - 1)
        step, losses = train_epoch(accelerator, model, optimizer, loader, args, average, step, bar)
        warn_if_not_finite(losses, step)
        history.append({"epoch": epoch, "step": step, "learning_rate": schedule.get_last_lr()[0], **losses})
        schedule.step()
        if epoch % args.eval_every == 0 or epoch == args.epochs:
            evaluator = evaluate(accelerator, evaluated, processor, held_out, args, f"epoch {epoch}")
            history[-1] |= {f"eval_{name}": value for name, value in evaluator.summary().items()}
            precisions.append(history[-1]["eval_map"])
            if accelerator.is_main_process and evaluations_since_best(precisions) == 0:
                evaluated.save_pretrained(args.output / "best")
                processor.save_pretrained(args.output / "best")
        shown = "".join(f"  {name} {history[-1][name]:.4g}" for name in SHOWN if name in history[-1])
        say(f"epoch {epoch}/{args.epochs}{shown}")
        if accelerator.is_main_process:
            (args.output / "history.json").write_text(json.dumps(history, indent=1) + "\n")
        save_checkpoint(accelerator, checkpoints, history)
    bar.close()
    if accelerator.is_main_process:
        plot_curves(history, args.output / "curves.png")
        print(f"Best AP {max(precisions, default=-1):.3f}: {args.output / 'best'}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
