"""`hf-detr convert detr-r50-e632da11.pth OUT`: the original's checkpoint as a folder for from_pretrained."""

import argparse
from pathlib import Path

from ._errors import about
from ._outputs import check_output_folder
from ._sources import check_config_file, check_model_source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="the .pth of facebookresearch/detr")
    parser.add_argument("output", type=Path, help="the folder to write: config.json, model.safetensors, preprocessor")
    parser.add_argument(
        "--config",
        type=Path,
        help="a config.json (or its folder), where the sizes of the tensors do not tell the architecture",
    )
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")


def run(args: argparse.Namespace) -> int:
    if not args.checkpoint.is_file():
        what = "a folder" if args.checkpoint.is_dir() else "no such file"
        raise ValueError(f"{args.checkpoint}: {what}; name the .pth of the original DETR.")
    if args.config is not None:
        if not args.config.exists():
            raise ValueError(f"--config {args.config}: no such file or folder; check the path.")
        if args.config.is_dir():
            check_model_source(str(args.config))
        else:
            check_config_file(args.config)
    check_output_folder(args.output, args.overwrite)
    from hf_detr import DetrConfig, DetrForObjectDetection, DetrForSegmentation, DetrImageProcessor

    from ..checkpoints.files import written_whole
    from ..checkpoints.original import has_masks

    config = None
    if args.config is not None:
        with about(args.config, "name the config.json of a DETR"):
            config = DetrConfig.from_pretrained(args.config)
    with about(args.checkpoint, "name the .pth of the original DETR, and --config where it has other sizes"):
        model_class = DetrForSegmentation if has_masks(args.checkpoint) else DetrForObjectDetection
        model = model_class.from_original(args.checkpoint, config)
    with about(args.output, "free some space, or name another folder"), written_whole(args.output) as folder:
        model.save_pretrained(folder)
        DetrImageProcessor().save_pretrained(folder)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    config = model.config
    print(
        f"{args.output}: {model_class.__name__}, {config.backbone_config.backbone}{' DC5' if config.dilation else ''}, "
        f"{config.encoder_layers} + {config.decoder_layers} layers, {config.num_queries} queries, "
        f"{config.num_labels} classes, {parameters:,} parameters"
    )
    if config.num_labels == 91:
        print(
            "Class ids are COCO's category ids (1 person ... 90 toothbrush; ten ids in between and 0 are unused and "
            "called N/A). Fine-tuning on other classes replaces them: pass id2label to from_pretrained."
        )
    return 0
