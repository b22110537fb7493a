"""What a run trains: boxes, or masks as well, and from which model."""

import argparse
from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from hf_detr.configuration_detr import DetrConfig
from hf_detr.data.formats.base import MASK_KINDS
from hf_detr.data.report import Report
from hf_detr.data.schema import has_masks, is_panoptic, stuff_ids
from hf_detr.image_processing_detr import DetrImageProcessor
from hf_detr.modeling_detr_segmentation import DetrForSegmentation

from ._errors import about
from ._running import Model, model_class_of, read_model

_MASK_HEAD = ("bbox_attention.", "mask_head.")


def wants_masks(args: argparse.Namespace) -> bool:
    """Whether the arguments of a training say, before its data are read, that it learns masks."""
    if args.task is not None:
        return args.task != "detection"
    return args.freeze_detector or bool(args.model and model_class_of(args.model) is DetrForSegmentation)


def decide_task(args: argparse.Namespace, splits: Mapping[str, Dataset], report: Report | None) -> None:
    """Sets `args.task` where it is open, says what it is and why, and refuses what the data cannot teach.

    Panoptic where the data tells things from stuff, instance where the model to start from has masks or its detector
    is frozen, else detection.
    """
    with_masks, panoptic, why = has_masks(splits), bool(is_panoptic(splits)), ""
    if args.task is None:
        asked = wants_masks(args)
        args.task = "panoptic" if panoptic else "instance" if asked else "detection"
        if panoptic:
            why = " (the data tells things from stuff; others by --task)"
        elif asked:
            why = " (--freeze-detector)" if args.freeze_detector else f" ({args.model} has masks)"
        elif with_masks:
            why = " (the data has masks, which --task instance learns too)"
    if why or args.task != "detection":
        print(f"task: {args.task}{why}\n")
    if args.task == "detection":
        if args.freeze_detector:
            raise ValueError("--freeze-detector trains masks alone; with --task detection, leave it out.")
        return
    if not with_masks:
        raise ValueError(f"--task {args.task}: no object of {args.data} has a mask; add masks, or train boxes alone.")
    if args.task == "panoptic" and not panoptic:
        raise ValueError(
            f"--task panoptic: {args.data} does not say what is thing and what is stuff, as COCO's panoptic format "
            "does; take --task instance."
        )
    problems = [one for one in report.problems if one.kind.startswith(MASK_KINDS)] if report else []
    if problems:
        raise ValueError(
            f"{args.data}: {len(problems):,} problems of masks, the first: {problems[0].where}: {problems[0].message} "
            f"All of them: hf-detr check {args.data} --masks. To train all the same: --no-check."
        )


def with_masks_from(
    args: argparse.Namespace, names: dict[int, str], remedy: str, **options: Any
) -> DetrForSegmentation:
    """The model with masks that `--model` is the start of: whole, or as the detector of a fresh mask head.

    Raises ValueError for a detector to be frozen that lacks something it could not learn then.
    """
    if args.freeze_detector:
        with about(args.model, remedy):
            config = DetrConfig.from_pretrained(args.model)
        missing = [name for name in names.values() if name not in config.id2label.values()]
        lacks = f"has not the classes {', '.join(missing[:5])} of the data" if missing else ""
        if args.num_queries not in (None, config.num_queries):
            lacks = f"has {config.num_queries} queries, not {args.num_queries}"
        if lacks:
            raise ValueError(
                f"--freeze-detector: {args.model} {lacks} and, frozen, would not learn them; train it first with "
                "--task detection, or train both together without --freeze-detector."
            )
    fresh = () if model_class_of(args.model) is DetrForSegmentation else _MASK_HEAD
    model = read_model(args.model, remedy, DetrForSegmentation, fresh, id2label=names, **options)
    (model.freeze_detector if args.freeze_detector else model.unfreeze_detector)()
    return model


def set_stuff(model: Model, processor: DetrImageProcessor, splits: Mapping[str, Dataset], task: str) -> None:
    """Tells model and processor which classes are stuff, whose segments panoptic results fuse; None but for them."""
    stuff = stuff_ids(splits) if task == "panoptic" else None
    model.config.label_ids_to_fuse = processor.label_ids_to_fuse = stuff
