"""`hf-detr explain IMAGE --model MODEL`: what the detector looked at, as one page."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_detr.wording import printable

from ._arguments import fraction, not_negative
from ._errors import about
from ._outputs import check_output_file, write_text
from ._sources import check_model_source

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from hf_detr.image_processing_detr import DetrImageProcessor
    from hf_detr.modeling_detr import DetrForObjectDetection

_EPILOG = """\
The page needs nothing beside it. It shows the boxes and classes after each decoder layer, the attention of the box that
is pointed at or tapped, the layer that decided, and the encoder's attention from points.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("image", metavar="IMAGE", help="an image file")
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="a folder of save_pretrained or hf-detr train, or a Hub name"
    )
    parser.add_argument(
        "--output", "-o", type=Path, metavar="FILE", help="the page (default: IMAGE's name with .html, in this folder)"
    )
    parser.add_argument(
        "--threshold", type=fraction, default=0.5, metavar="SCORE", help="explain what scores above it (default 0.5)"
    )
    parser.add_argument(
        "--point",
        dest="points",
        type=not_negative,
        nargs=2,
        action="append",
        default=[],
        metavar=("X", "Y"),
        help="look from here in the encoder, pixels of the upright image; several times (default: the detections)",
    )
    parser.add_argument(
        "--queries-over",
        nargs="+",
        default=[],
        metavar="IMAGES",
        help="images, folders or patterns: draw also where the boxes of each query lie in all of them",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps, or auto (default): the fastest here")


def run(args: argparse.Namespace) -> int:
    output = args.output or Path(f"{Path(args.image).stem}.html")
    if output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--output {output}: the page is HTML; name a file that ends in .html.")
    check_model_source(args.model)
    check_output_file(output, "--output")
    from ._images import find_files, is_video

    files = [file for file in find_files(args.queries_over) if not is_video(file)]
    from hf_detr.cli._process_memory import keep_freed_memory
    from hf_detr.visualization import explanation_page, record_attention

    from ._running import choose_device, load_model, quiet_libraries

    quiet_libraries()
    device = choose_device(args.device)
    if device.type == "cpu":
        keep_freed_memory()
    model, processor = load_model(args.model, device)
    model = getattr(model, "detr", model)  # of one with masks, its detector
    image, pixel_values = _prepared(args.image, processor)
    height, width = image.shape[-2:]
    for x, y in args.points:
        if x > width or y > height:
            raise ValueError(f"--point {x:g} {y:g}: outside of {args.image}, which is {width} x {height} pixels.")
    recording = record_attention(model, pixel_values.to(device))
    if not (recording.logits.isfinite().all() and recording.boxes_cxcywh.isfinite().all()):
        raise ValueError(f"{args.image}: the model's outputs hold a NaN or an infinity; look for diverged weights.")
    page = explanation_page(
        recording,
        image if image.shape[0] in (1, 3, 4) else image[:1],  # of many channels the first
        model.config.id2label,
        title=f"{Path(args.image).name}, seen by {Path(args.model).name}",
        threshold=args.threshold,
        points=[(x / width, y / height) for x, y in args.points],
        queries=_queries(model, processor, files) if files else None,
    )
    write_text(output, page)
    print(f"written: {printable(str(output))}")
    return 0


def _prepared(file: str | Path, processor: "DetrImageProcessor") -> "tuple[Tensor, Tensor]":
    """The image as the processor takes it (C, H, W), and what it makes of it (1, C, height, width)."""
    from hf_detr.image_processing.loading import load_image

    with about(file, "name an image file"):
        image = load_image(
            str(file),
            str(file),
            do_convert_rgb=processor.do_convert_rgb,
            do_exif_transpose=processor.do_exif_transpose,
        )
        inputs = processor(images=image, do_pad=False, return_tensors="pt", input_data_format="channels_first")
    return image, inputs["pixel_values"]


def _queries(model: "DetrForObjectDetection", processor: "DetrImageProcessor", files: Sequence[Path]) -> "Image.Image":
    """Where the boxes of each query lie in all images. ValueError, naming it, for one that cannot be read."""
    import torch

    from hf_detr.visualization import draw_queries
    from hf_detr.visualization.attention import layer_answers

    from ._running import progress_bar

    boxes, scores = [], []
    with progress_bar(len(files), "queries") as bar, torch.inference_mode():
        for file in files:
            outputs = model(_prepared(file, processor)[1].to(model.device))
            boxes.append(outputs.pred_boxes[0].float().cpu())
            scores.append(layer_answers(outputs.logits[0].float().cpu())[1])
            bar.update()
    return draw_queries(torch.stack(boxes), torch.stack(scores))
