"""The README.md of an exported folder: how to run it, and what is known of it."""

from typing import TYPE_CHECKING

from .graph import DetectorGraph
from .inference_script import RUNTIMES, inference_script
from .precision import PRECISIONS

if TYPE_CHECKING:
    from .exporting import Written

_HOW = {
    "executorch": "The ExecuTorch runtime loads it.",
    "torch": "`torch.export.load` reads it; a .pt2 is a pickle, so load only one that you trust.",
}


def card(format: str, precision: str, graph: DetectorGraph, written: "Written") -> str:
    """Its text."""
    how = _HOW.get(format) or f"{RUNTIMES[format].package} runs it."
    if inference_script(format, graph) is not None:
        how = f"`python inference.py IMAGE` needs {RUNTIMES[format].package}, numpy and Pillow."
    config, worst = graph.config, written.difference
    inputs = "`pixel_values` (batch, channels, height, width) float32, `pixel_mask` (batch, height, width) int64"
    outputs = "`logits` (batch, queries, classes + 1), `pred_boxes` (batch, queries, 4) cxcywh of the visible image"
    if graph.post_process:
        inputs += ", `target_sizes` (batch, 2) float32, heights and widths in pixels"
        outputs = "`scores` and `labels` (batch, queries), `boxes` (batch, queries, 4) xyxy in pixels"
    if graph.has_masks:
        outputs += ", `pred_masks` (batch, queries, height / 4, width / 4) logits, above 0 on the object"
    classes = "1 class" if config.num_labels == 1 else f"{config.num_labels} classes"
    lines = [
        f"Inputs: {inputs}; batch, height and width are free.",
        f"Outputs: {outputs}.",
        f"{classes} (names in config.json), {config.num_queries} queries.",
        f"Precision: {precision}, {PRECISIONS[precision]}.",
        f"Size: {megabytes(written.size_bytes)}; the weights in float32 are {megabytes(written.weight_bytes)}.",
        "Compared with the model on three inputs it was not traced with, of random numbers, one padded: the "
        f"largest difference is {worst.value:.1e} ({worst.output}, {worst.where}).",
    ]
    if written.quality_name:
        lines.append(
            f"{written.quality_name}: {written.quality_after:.3f}, of the model {written.quality_before:.3f}, on the "
            "same images, one at a time."
        )
    elif precision != "fp32":
        lines.append("What the precision costs was not measured; export with `--data` to know.")
    return f"# DETR, exported as {format}\n\n{how}\n\n" + "".join(f"- {line}\n" for line in lines)


def megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
