"""`hf-detr export RUN`: a trained model as ONNX, OpenVINO, ExecuTorch or torch.export, in float32 or less."""

import argparse
import logging
import sys
from contextlib import redirect_stdout
from pathlib import Path

from ._arguments import above_zero, add_data_arguments, add_policy_arguments, not_negative, positive
from ._sources import check_data_source, check_model_source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder of a run or a checkpoint, or a name on the Hub")
    parser.add_argument(
        "--format",
        dest="export_format",
        choices=("onnx", "openvino", "executorch", "torch"),
        default="onnx",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "bf16", "int8", "int8-static"),
        default="fp32",
        help="fp16, bf16: of the weights; int8: of linear layers; int8-static: of convolutions too, with scales from "
        "images of --data. Default: %(default)s",
    )
    parser.add_argument("--output", "-o", type=Path, help="folder to write (default: MODEL-FORMAT in this folder)")
    parser.add_argument(
        "--post-process", action="store_true", help="the graph gives scores, labels and boxes in pixels by itself"
    )
    parser.add_argument(
        "--max-difference",
        type=above_zero,
        metavar="D",
        help="refuse a graph whose logits or boxes differ by more than this (default: 0.001 in fp32, else any)",
    )
    parser.add_argument(
        "--max-ap-loss",
        type=not_negative,
        default=0.02,
        metavar="X",
        help="refuse a graph whose AP on --data is lower by more than this (default: %(default)g)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that is not empty")
    group = add_data_arguments(parser, as_option=True)
    group.add_argument(
        "--split", metavar="NAME", help="to measure on; default: test, else validation, else the only one"
    )
    group.add_argument("--limit", type=positive, metavar="N", help="measure on the first N images (default: all)")
    group.add_argument(
        "--calibration-images",
        type=positive,
        default=64,
        metavar="N",
        help="of split train where there is one, for int8-static (default: %(default)s)",
    )
    add_policy_arguments(group)
    parser.set_defaults(batch_size=1, threads=4)  # of the evaluation


def run(args: argparse.Namespace) -> int:
    check_model_source(args.model)
    if args.data:
        check_data_source(args.data)
    elif args.precision == "int8-static":
        raise ValueError("--precision int8-static takes its scales from images; give --data, or take int8.")
    import torch

    from hf_detr.cli._running import load_model
    from hf_detr.export import export_model
    from hf_detr.export.card import megabytes
    from hf_detr.export.exporting import Quality

    quiet_exporters()
    name = args.export_format if args.precision == "fp32" else f"{args.export_format}-{args.precision}"
    output = args.output or Path(f"{Path(args.model).name}-{name}")
    model, processor = load_model(args.model, torch.device("cpu"))
    quality, calibration, where = None, (), ""
    if args.data:
        from ._judging import Judge

        if args.post_process:
            raise ValueError(
                "--data measures a graph without --post-process; export it once more with, its AP is equal."
            )
        judge = Judge(args, model, processor)
        quality = Quality(judge.measure, judge.in_words, args.max_ap_loss)
        where = f"{len(judge.dataset):,} images of {args.data}, split {judge.split!r}"
        if args.precision == "int8-static":
            split, calibration = judge.calibration(args.calibration_images)
            print(f"calibrating with {len(calibration)} images of split {split!r}")
    try:
        with redirect_stdout(sys.stderr):  # the tracer tells of its progress
            written = export_model(
                model,
                processor,
                output,
                args.export_format,
                args.precision,
                calibration=calibration,
                quality=quality,
                post_process=args.post_process,
                max_difference=args.max_difference,
                overwrite=args.overwrite,
            )
    except ImportError as error:
        raise ValueError(str(error)) from error
    worst = written.difference
    print(
        f"{output}: {args.export_format}, {args.precision}, {megabytes(written.size_bytes)}; largest difference from "
        f"the model {worst.value:.1e} ({worst.output}, {worst.where})"
    )
    if quality is not None:
        print(f"\n{where}:\n{_table(written)}")
    elif args.precision != "fp32":
        print("What it costs in AP was not measured; --data DATA measures it and refuses a loss above --max-ap-loss.")
    return 0


def quiet_exporters() -> None:
    """What exporters and tracers say of operators that no DETR has, and of versions, whose effect is checked."""
    import transformers

    from ._running import quiet_libraries

    quiet_libraries()
    transformers.logging.set_verbosity_error()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)


def _table(written) -> str:
    """Quality and size, before and after."""
    from hf_detr.export.card import megabytes

    from ._running import aligned

    return aligned(
        [
            ("", written.quality_name, "size"),
            ("before", f"{written.quality_before:.3f}", megabytes(written.weight_bytes)),
            ("after", f"{written.quality_after:.3f}", megabytes(written.size_bytes)),
        ]
    )
