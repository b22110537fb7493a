"""`hf-detr export RUN`: a trained detector as ONNX, OpenVINO, ExecuTorch or torch.export."""

import argparse
import logging
from pathlib import Path

from ._arguments import above_zero
from ._sources import check_model_source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder of a run or a checkpoint, or a name on the Hub")
    parser.add_argument(
        "--format", choices=("onnx", "openvino", "executorch", "torch"), default="onnx", help="default: %(default)s"
    )
    parser.add_argument("--output", "-o", type=Path, help="folder to write (default: MODEL-FORMAT in this folder)")
    parser.add_argument(
        "--post-process", action="store_true", help="the graph gives scores, labels and boxes in pixels by itself"
    )
    parser.add_argument(
        "--max-difference",
        type=above_zero,
        default=1e-3,
        metavar="D",
        help="refuse a graph whose logits or boxes differ by more than this (default: %(default)g)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that is not empty")


def run(args: argparse.Namespace) -> int:
    import torch

    from hf_detr.cli._running import load_model, quiet_libraries
    from hf_detr.evaluation.tasks import has_mask_head
    from hf_detr.export import export_model

    quiet_libraries()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # operators that no DETR has
    check_model_source(args.model)
    output = args.output or Path(f"{Path(args.model).name}-{args.format}")
    model, processor = load_model(args.model, torch.device("cpu"))
    if has_mask_head(model):
        raise ValueError(f"{args.model} has masks, which export does not write; name a detector.")
    try:
        worst = export_model(
            model,
            processor,
            output,
            args.format,
            post_process=args.post_process,
            max_difference=args.max_difference,
            overwrite=args.overwrite,
        )
    except ImportError as error:
        raise ValueError(str(error)) from error
    size = sum(file.stat().st_size for file in output.iterdir())
    print(
        f"{output}: {args.format}, {size / 1e6:.1f} MB; largest difference from the model {worst.value:.1e} "
        f"({worst.output}, {worst.where})"
    )
    return 0
