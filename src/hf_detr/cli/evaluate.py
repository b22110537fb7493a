"""`hf-detr evaluate MODEL DATA`: COCO average precision, or panoptic quality, of a model on a data set."""

import argparse
import difflib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._arguments import add_data_arguments, add_policy_arguments, add_running_arguments, data_options, positive
from ._errors import about
from ._outputs import check_output_file, write_text
from ._sources import check_data_source, check_model_source, read_json_object

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_detr.evaluation import CocoEvaluator
    from hf_detr.evaluation.analysis import Analysis

_PREFERRED_SPLITS = ("test", "validation")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Classes of model and data are matched by name; the numbers are pycocotools'."
    parser.add_argument("model", metavar="MODEL", help="a folder of save_pretrained or hf-detr train, or a Hub name")
    group = add_data_arguments(parser)
    group.add_argument("--split", metavar="NAME", help="default: test, else validation, else the only one there is")
    add_policy_arguments(group)
    parser.add_argument(
        "--task", choices=("detection", "instance", "panoptic"),
        help="AP of boxes, AP of masks, or panoptic quality. Default: boxes for a detector; for a model with masks "
        "panoptic where the data tells things from stuff, else masks",
    )  # fmt: skip
    parser.add_argument(
        "--max-dets",
        type=positive,
        nargs="+",
        default=[1, 10, 100],
        metavar="N",
        help="detections an image and class that are looked at; the most is for AP (default 1 10 100)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the metrics, all classes in it")
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="write the detections as COCO results, with the data's own ids"
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE.html", help="write a page: curves, confusion, errors, the worst images"
    )
    parser.add_argument(
        "--save-thresholds",
        action="store_true",
        help="write each class's threshold of the best F1 into MODEL's preprocessor_config.json, for predict to use",
    )
    add_running_arguments(parser)


def run(args: argparse.Namespace) -> int:
    check_model_source(args.model)
    check_data_source(args.data)
    check_output_file(args.json, "--json")
    check_output_file(args.results, "--results")
    check_output_file(args.report, "--report")
    processor_file = Path(args.model, "preprocessor_config.json") if args.save_thresholds else None
    if processor_file and not Path(args.model).is_dir():
        raise ValueError(
            f"--save-thresholds: {args.model} is no folder here; download it, or save_pretrained it first."
        )
    check_output_file(processor_file, "--save-thresholds")
    from hf_detr.data.schema import class_names, original_category_ids
    from hf_detr.evaluation import CocoEvaluator, evaluator_of, task_of

    from ..evaluation.tasks import IN_WORDS
    from ._running import load_model, quiet_libraries

    quiet_libraries()
    device = device_of(args)
    CocoEvaluator(max_dets=args.max_dets)  # its errors before the work, not after
    split, dataset = load_split(args)
    model, processor = load_model(args.model, device)
    names = class_names(dataset)
    class_of_label = match_classes(model.config.id2label, names)
    unused = [name for label, name in model.config.id2label.items() if label not in class_of_label]
    if unused:
        warnings.warn(f"{_few(unused)}: classes of the model that the data has not; their detections are left out.")

    task = args.task or task_of(model, dataset)
    _check_task(args, task, model, dataset)
    if task == "panoptic":
        know_stuff(processor, model, dataset, class_of_label)
    evaluator = evaluator_of(task, names, args.max_dets)
    measure(args, model, processor, dataset, evaluator, class_of_label, f"evaluate {split}")
    kind = "" if task == "detection" else f", {IN_WORDS[task]}"
    print(f"{args.model} on {args.data}, split {split!r}{kind}\n")
    print(evaluator.table())
    if args.json:
        with about(args.json, "name another file"):
            evaluator.to_json(args.json)
        print(f"\nwritten: {args.json}")
    if args.results:
        with about(args.results, "name another file"):
            evaluator.write_results(args.results, original_category_ids(dataset))
        print(f"\nwritten: {args.results}")
    if not (args.report or args.save_thresholds):
        return 0
    from hf_detr.evaluation.analysis import analyse

    analysis = analyse(evaluator)
    if args.report:
        with about(args.report, "name another file"):
            write_page(args.report, f"{args.model} on {args.data}, split {split}", evaluator, dataset, analysis)
        print(f"\nwritten: {args.report}")
    if args.save_thresholds:
        saved = {label: analysis.curves[analysis.class_names[k]].threshold for label, k in class_of_label.items()}
        save_thresholds(processor_file, {label: one for label, one in saved.items() if one is not None})
        lacking = [model.config.id2label[label] for label, one in saved.items() if one is None]
        print(f"\nwritten: {processor_file} (thresholds of {len(saved) - len(lacking)} classes, of split {split!r})")
        if lacking:
            warnings.warn(f"{_few(lacking)}: found nowhere, so without a saved threshold, which makes it 0.5.")
    return 0


def save_thresholds(path: Path, thresholds: Mapping[int, float]) -> None:
    """Writes {label: threshold} into a preprocessor_config.json, whose other settings stay."""
    content = {**read_json_object(path), "class_thresholds": {str(label): one for label, one in thresholds.items()}}
    write_text(path, json.dumps(content, indent=2) + "\n")


_SHOWN = 24  # images of the page
_LEAST_PX, _MOST_PX = 384, 960  # long sides of drawings: names are read as the page shows them; of masks


def write_page(path: Path, title: str, evaluator: "CocoEvaluator", dataset: "Dataset", analysis: "Analysis") -> None:
    """The page of --report, with the worst images drawn."""
    from datasets import Image

    from hf_detr.data.transform import decode_image
    from hf_detr.visualization import draw_detections
    from hf_detr.visualization.masks import draw_masks_pair
    from hf_detr.visualization.report_page import write_report

    threshold, names = analysis.overall.threshold or 0.0, dict(enumerate(analysis.class_names))
    kept = dict(zip(evaluator.image_ids(), evaluator.images(), strict=True))
    place = {image_id: index for index, image_id in enumerate(dataset["image_id"])}
    undecoded = dataset.cast_column("image", Image(decode=False))
    drawings = []
    for image_id in analysis.worst[:_SHOWN]:
        row, (boxes, scores, labels) = undecoded[place[image_id]], kept[image_id].detections
        found, masks = {"boxes": boxes, "scores": scores, "labels": labels}, kept[image_id].masks
        wrong, missed = analysis.image_errors[image_id]
        name = Path(row["image"].get("path") or f"image {image_id}").name
        image = decode_image(row)
        if masks is None:
            drawn = [draw_detections(image, found, names, threshold, targets=row, least_px=_LEAST_PX)]
        else:
            found["masks"] = [{"size": list(masks.size_hw), "counts": counts} for counts in masks.counts]
            side_px = min(max(*image.size, _LEAST_PX), _MOST_PX)
            drawn = draw_masks_pair(image, found, row, names, threshold, cell_px=side_px)
        drawings.append((f"{name}: {wrong} wrong, {missed} missed", *drawn))
    write_report(analysis, path, title, drawings)


def _check_task(args: argparse.Namespace, task: str, model: Any, dataset: Any) -> None:
    """Raises ValueError for what the model or the data have not."""
    from hf_detr.data.schema import has_masks, is_panoptic
    from hf_detr.evaluation.tasks import has_mask_head

    if task == "detection":
        return
    if not has_mask_head(model):
        raise ValueError(f"--task {task}: {args.model} is a detector without masks; take --task detection.")
    if not has_masks(dataset):
        raise ValueError(f"{args.data}: no object has a mask to compare with; --task detection compares the boxes.")
    if task == "panoptic" and not is_panoptic(dataset):
        raise ValueError(
            f"--task panoptic: {args.data} does not say what is thing and what is stuff; take --task instance."
        )
    if task == "panoptic" and args.results:
        raise ValueError("--results writes detections; `hf-detr predict` writes panoptic segments.")
    if task == "panoptic" and (args.report or args.save_thresholds):
        option = "--report" if args.report else "--save-thresholds"
        raise ValueError(
            f"{option} ranks detections by score, and panoptic segments, which share out the pixels, have no such "
            "ranking; take --task instance for the masks, or --task detection for the boxes."
        )


def know_stuff(processor: Any, model: Any, dataset: Any, class_of_label: Mapping[int, int]) -> None:
    """Tells the processor which of the model's classes are stuff, where neither it nor the model knows."""
    from hf_detr.data.schema import stuff_ids

    if processor.label_ids_to_fuse is None:
        processor.label_ids_to_fuse = model.config.label_ids_to_fuse
    if processor.label_ids_to_fuse is None:
        stuff = set(stuff_ids(dataset))
        processor.label_ids_to_fuse = [label for label, category in class_of_label.items() if category in stuff]


def device_of(args: argparse.Namespace) -> Any:
    """The device that was asked for; memory that a CPU frees stays with the process."""
    from ._process_memory import keep_freed_memory
    from ._running import choose_device

    device = choose_device(args.device)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def load_split(args: argparse.Namespace) -> "tuple[str, Dataset]":
    """The split to evaluate on, and its name."""
    from hf_detr.data.loading import load_detection_dataset

    policies = {"on_bad_box": args.on_bad_box, "on_bad_image": args.on_bad_image}
    with about(args.data, "see hf-detr check"):
        splits = load_detection_dataset(args.data, args.format, splits=args.split, **policies, **data_options(args))
    split = choose_split(list(splits))
    return split, splits[split]


def measure(
    args: argparse.Namespace,
    model: Any,
    processor: Any,
    dataset: "Dataset",
    evaluator: Any,
    class_of_label: Mapping[int, int],
    title: str,
) -> None:
    """Gives the evaluator every image of the data set, under a progress bar called `title`."""
    from hf_detr.evaluation import evaluate_model

    from ._running import in_order, progress_bar

    with progress_bar(len(dataset), title) as bar:
        evaluate_model(
            model,
            processor,
            dataset,
            batch_size=args.batch_size,
            on_batch=lambda: bar.update(len(evaluator) - bar.n),
            evaluator=evaluator,
            class_of_label=class_of_label,
            # threads rather than processes: decoding and resizing leave the interpreter to others
            read=lambda load, batches: in_order(load, batches, args.threads),
        )


def choose_split(splits: Sequence[str]) -> str:
    """The split to evaluate on. Raises ValueError where it is not clear which."""
    for split in _PREFERRED_SPLITS:
        if split in splits:
            return split
    if len(splits) > 1:
        raise ValueError(f"the data has the splits {', '.join(splits)}; say which with --split.")
    return splits[0]


def match_classes(id2label: Mapping[int, str], class_names: Sequence[str]) -> dict[int, int]:
    """The model's label -> the data's class id, by name. Raises ValueError where the model lacks one of the data."""
    missing = [name for name in class_names if name not in id2label.values()]
    if missing:
        alike = {name: difflib.get_close_matches(name, id2label.values(), 1, 0.7) for name in missing}
        hints = [f"{name!r} may be its {match[0]!r}" for name, match in alike.items() if match]
        raise ValueError(
            f"the model has no class {_few(missing)} of the data; its classes are {_few(list(id2label.values()))}."
            + (f" {'; '.join(hints[:3])}." if hints else "")
            + " Rename them in id2label of the model's config.json or in the data, or fine-tune the model on this data."
        )
    ids = {name: index for index, name in enumerate(class_names)}
    return {int(label): ids[name] for label, name in id2label.items() if name in ids}


def _few(names: Sequence[str]) -> str:
    shown = [repr(name) for name in names]
    return ", ".join(shown) if len(shown) <= 6 else f"{', '.join(shown[:5])} and {len(shown) - 5} more"
