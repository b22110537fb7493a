"""The folder of a run at its end: everything that tells what became of it."""

import argparse
import json
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Image
from huggingface_hub import HfApi

from hf_detr.checkpoints.card_facts import base_of, card_facts, versions
from hf_detr.checkpoints.files import written_whole
from hf_detr.checkpoints.model_card import model_card
from hf_detr.data.report import Report
from hf_detr.data.schema import class_names
from hf_detr.data.transform import DetectionTransform, decode_image, transform_dataset
from hf_detr.evaluation import CocoEvaluator, Evaluator
from hf_detr.evaluation.analysis import analyse
from hf_detr.evaluation.tasks import IN_WORDS
from hf_detr.image_processing_detr import DetrImageProcessor
from hf_detr.training import DetrTrainer
from hf_detr.visualization import plot_curves, save_detections_grid, save_masks_grid
from hf_detr.visualization.analysis_plots import RUN_FIGURES, save_figure
from hf_detr.wording import counted

from ._errors import about, one_line
from ._outputs import write_text
from ._run_settings import SETTINGS, settings_of
from ._training import Splits

_THRESHOLD = 0.5  # of the figure, and of the snippets in the card
_NUM_IMAGES = 9


def write_run_folder(
    args: argparse.Namespace, trainer: DetrTrainer, processor: DetrImageProcessor, splits: Splits, report: Report | None
) -> None:
    """Writes the trained model, evaluates it, and writes metrics, figures and card, in this order: what comes later
    costs nothing of what came before. Prints the table."""
    folder, is_writer = args.output, trainer.is_world_process_zero()
    history = list(trainer.state.log_history)
    if is_writer:
        with about(folder, "free some space"), written_whole(folder) as temporary:
            trainer.model.save_pretrained(temporary)
            processor.save_pretrained(temporary)
    transform = DetectionTransform(processor, masks=args.task != "detection")
    trainer.evaluate(transform_dataset(splits.test, transform), metric_key_prefix="test")
    evaluator = trainer.evaluator
    metrics, table = evaluator.compute(), evaluator.table()
    seconds = next((entry["train_runtime"] for entry in reversed(history) if "train_runtime" in entry), None)
    if is_writer:
        content = {
            "split": splits.names[2],
            "metrics": metrics,
            "steps": trainer.state.global_step,
            "best_checkpoint": trainer.state.best_model_checkpoint,
            "train_seconds": seconds,
            "data_wait_share": trainer.data_wait_share,
            "unlabelled": None if splits.unlabelled is None else splits.unlabelled.counts,
            "settings": {name: _without_folders(name, value) for name, value in settings_of(args).items()},
            "versions": versions(),
            "history": history,
        }
        write_text(folder / "metrics.json", json.dumps(content, indent=2) + "\n")
    figures = _draw(trainer, transform, splits.test, history, evaluator, folder)
    if not is_writer:
        return
    facts = _facts(args, trainer, splits, report, metrics, seconds)
    write_text(folder / "README.md", model_card({**facts, "figures": figures}))

    print(f"\n{folder} on split {splits.names[2]!r}\n\n{table}\n")
    print(f"while training, the model waited for data {100 * (trainer.data_wait_share or 0):.1f}% of the time")
    print(f"written: {folder} ({', '.join(['model', 'processor', 'metrics.json', *figures, 'README.md'])})")
    print(f"try it:  hf-detr predict {folder} IMAGES")
    if args.push_to_hub:
        with about(f"--push-to-hub {args.push_to_hub}", f"the run is whole in {folder}; upload it from there"):
            print(f"pushed:  {_push(folder, args.push_to_hub)}")


def _push(folder: Path, repo_id: str) -> str:
    api = HfApi()
    repo_id = api.create_repo(repo_id, exist_ok=True).repo_id
    api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        ignore_patterns=["checkpoint-*", "_*", ".*", "*.bin", SETTINGS],
        commit_message="Trained with hf_detr",
    )
    return f"{api.endpoint}/{repo_id}"


def _draw(
    trainer: DetrTrainer,
    transform: DetectionTransform,
    rows: Dataset,
    history: list[dict],
    evaluator: Evaluator,
    folder: Path,
) -> dict[str, str]:
    """Draws what was found on a few images, evenly spread, the curves of the training and, of detections, precision
    against recall and confusion; returns file -> caption of what could be drawn. Every process must call it."""
    count = min(_NUM_IMAGES, len(rows))
    chosen = rows.select([index * len(rows) // count for index in range(count)])
    found = trainer.predict(transform_dataset(chosen, transform)).predictions
    if not trainer.is_world_process_zero():
        return {}

    def predictions(path: Path) -> str:
        undecoded = chosen.cast_column("image", Image(decode=False))
        images = [decode_image(row) for row in undecoded]
        targets = list(chosen.select_columns(["image_id", "objects"]))
        names = [Path(row["image"]["path"] or f"image {row['image_id']}").name for row in undecoded]
        id2label = trainer.model.config.id2label
        if transform.masks:
            save_masks_grid(images, found, targets, path, id2label, _THRESHOLD)
            caption = "Annotations, and beside them what was found,"
        else:
            save_detections_grid(images, found, path, id2label, _THRESHOLD, targets, captions=names)
            caption = f"Detections above {_THRESHOLD:g} in orange, annotations dashed in blue,"
        return f"{caption} on {counted(count, 'held-out image')}."

    def curves(path: Path) -> str:
        plot_curves(history, path)
        return "Losses and average precision of the training."

    figures: dict[str, Callable[[Path], str]] = {"predictions.png": predictions, "curves.png": curves}
    if isinstance(evaluator, CocoEvaluator):  # panoptic segments are not ranked by score
        analysis = cache(lambda: analyse(evaluator))
        figures |= {
            name: lambda path, make=make: save_figure(make(analysis()), path) for name, make in RUN_FIGURES.items()
        }
    drawn = {}
    for name, draw in figures.items():
        try:
            drawn[name] = draw(folder / name)
        except Exception as error:  # of many kinds; a figure is not worth a run
            warnings.warn(f"{folder / name} could not be drawn: {one_line(error)}")
    return drawn


def _facts(
    args: argparse.Namespace, trainer: DetrTrainer, splits: Splits, report: Report | None, metrics: dict, seconds: Any
) -> dict[str, Any]:
    config, settings = trainer.model.config, trainer.args
    on_hub = not Path(args.data).exists()
    steps, epochs = trainer.state.global_step, trainer.state.epoch
    parts = (splits.train, splits.validation, splits.test)
    counts = {name: _counts(rows) for name, rows in zip(splits.names, parts, strict=True)}
    base_model, started_from = base_of(args.model)
    if not args.model and args.pretrained_backbone:
        started_from += ", pretrained backbone"
    return {
        **card_facts(trainer.model, args.push_to_hub or args.output.resolve().name),
        "task": args.task,
        "license": args.license,
        "base_model": base_model,
        "classes": class_names(splits.train),
        "dataset": {
            "name": args.data if on_hub else _name_of_folder(Path(args.data).resolve()),
            "hub_id": args.data if on_hub else None,
            "format": None if on_hub else report.format if report else args.format,
            "splits": counts,
        },
        "evaluation": {"split": splits.names[2], "selection_split": splits.names[1], "metrics": metrics},
        "recipe": {
            "started from": started_from,
            "epochs": f"{epochs:g} ({counted(steps, 'step')})",
            "images a step": args.batch_size * args.gradient_accumulation * settings.world_size,
            "optimizer": ("AdamW, Muon for the transformer's matrices" if settings.uses_muon else "AdamW")
            + f", weight decay {args.weight_decay:g}, gradients clipped at {args.clip:g}",
            "learning rate": settings.rates_text,
            "schedule": "constant" if settings.lr_drop_at is None else f"/ 10 after {settings.lr_drop_at:.2f} of it",
            "augmentation": args.augment,
            "image size": ", ".join(f"{name} {value}" for name, value in dict(trainer.processing_class.size).items()),
            "recipe": args.recipe
            + (f", {config.denoising_queries} noised copies of each target" if config.denoising_queries else "")
            + (", a loss for the encoder's cells" if config.encoder_auxiliary_loss else "")
            + (", IoU-aware classification" if config.iou_aware_classification else ""),
            **({"teacher": base_of(args.teacher)[1]} if args.teacher else {}),
            **({"labelled by the teacher": str(splits.unlabelled)} if splits.unlabelled else {}),
            "averaged weights": f"decay {args.ema:g}" if args.ema else "yes" if settings.averages_weights else "no",
            "precision": "bf16" if settings.bf16 else "fp16" if settings.fp16 else "fp32",
            "bad boxes": args.on_bad_box + (f", {bad} found" if (bad := _bad_boxes(report)) else ""),
            "best epoch by": f"{IN_WORDS[args.task]} on {splits.names[1]}",
            **({} if args.task == "detection" else {"detector": "frozen" if config.freeze_detector else "trained"}),
            "seed": args.seed,
            "time": "unknown" if seconds is None else f"{_time(seconds)} on {_machine(trainer)}",
        },
        "threshold": _THRESHOLD,
    }


def _name_of_folder(path: Path) -> str:
    """What a data set on this machine is called: its folder, not that of its annotations."""
    path = path.parent if path.is_file() else path
    return path.parent.name if path.name.lower() in ("annotations", "labels") else path.name


def _without_folders(name: str, value: Any) -> Any:
    """Of a local path its last part: the folder may be published, and nobody else has the others."""
    paths = ("data", "model", "output", "image_dir", "teacher", "unlabelled")
    return Path(value).resolve().name if name in paths and value and Path(value).exists() else value


def _counts(rows: Dataset) -> dict[str, int]:
    return {"images": len(rows), "objects": sum(len(one["bbox"]) for one in rows.select_columns("objects")["objects"])}


def _bad_boxes(report: Report | None) -> int:
    return sum(summary.bad_boxes for summary in report.splits.values()) if report else 0


def _time(seconds: float) -> str:
    return counted(round(seconds), "second") if seconds < 100 else f"{seconds / 60:.1f} minutes"


def _machine(trainer: DetrTrainer) -> str:
    device = trainer.args.device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type.upper()}, {counted(torch.get_num_threads(), 'thread')}"
