"""Writes a detector as a folder that runs without this package, after its answers were compared with the model's."""

import shutil
import tempfile
import warnings
from pathlib import Path

import torch

from ..image_processing_detr import DetrImageProcessor
from ..modeling_detr import DetrForObjectDetection
from .graph import DetectorGraph
from .parity import Difference, trial_inputs, worst_difference
from .text import INFERENCE_SCRIPT, card

# our name -> that of transformers.exporters
FORMATS = {"onnx": "onnx", "openvino": "openvino", "executorch": "executorch", "torch": "dynamo"}


def export_model(
    model: DetrForObjectDetection,
    processor: DetrImageProcessor,
    folder: str | Path,
    format: str = "onnx",
    *,
    post_process: bool = False,
    max_difference: float = 1e-3,
    overwrite: bool = False,
) -> Difference:
    """Writes `folder`: the graph with dynamic batch, height and width and its `pixel_mask`, config.json with the labels,
    preprocessor_config.json, a card, and for ONNX `inference.py`, which needs onnxruntime, numpy and Pillow alone.

    The graph computes in float32 with folded norms; `model` stays as it is. Its outputs are compared with the model's
    on three inputs unlike the one it was traced with, one padded and one of another batch; returned is the largest
    difference (logits, and boxes as shares of the image).

    Args:
        format: one of `FORMATS`.
        post_process: the graph takes `target_sizes` too and gives scores, labels and boxes in pixels.
        max_difference: what may be the largest difference.
        overwrite: replace a folder that is not empty.

    Raises:
        ImportError: without the packages of the extra `export`, or a transformers without exporters.
        ValueError: an unknown format, a folder that is not empty, or a difference above `max_difference`, with its
            output; nothing is written then.
    """
    folder = Path(folder)
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is none of {', '.join(FORMATS)}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not overwrite:
        raise ValueError(f"{folder} exists and is not empty; name another folder, or say overwrite=True (--overwrite).")
    graph = DetectorGraph(model, post_process)
    sides_px = _sides_px(processor.size)
    exported = _trace(graph, format, sides_px)
    trials = trial_inputs(graph.config.num_channels, sides_px, post_process)
    worst = worst_difference(graph, exported, trials)
    if not worst.value <= max_difference:
        raise ValueError(
            f"--format {format}: {worst.output} differ by {worst.value:.2g} from the model's with {worst.where}, more "
            f"than {max_difference:g}; nothing was written. Other versions of {format} or torch may do better."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as temporary:
        part = Path(temporary) / folder.name
        exported.save_pretrained(part)
        processor.save_pretrained(part)
        size = sum(file.stat().st_size for file in part.iterdir())
        (part / "README.md").write_text(card(format, graph.config, worst, size, post_process), encoding="utf-8")
        if format == "onnx" and not post_process:
            (part / "inference.py").write_text(INFERENCE_SCRIPT, encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    return worst


def _trace(graph: DetectorGraph, format: str, sides_px: tuple[int, int]):
    """The `ExportedModel` of transformers, traced with a batch of two, padded."""
    try:
        from transformers.exporters import AutoExportConfig, AutoHfExporter
    except ImportError as error:
        raise ImportError(
            'This transformers has no exporters; pip install -U "hf-detr[export]" brings one that has.'
        ) from error
    height, width = sides_px
    (_, inputs), *_ = trial_inputs(graph.config.num_channels, (height, width), graph.post_process, seed=1)
    inputs = {name: torch.cat((value, value)) for name, value in inputs.items()}
    inputs["pixel_mask"][1, height // 2 :] = 0
    config = AutoExportConfig.from_dict({"export_format": FORMATS[format], "dynamic": True})
    try:
        exporter = AutoHfExporter.from_config(config)
    except ImportError as error:
        raise ImportError(f'--format {format}: {error} (pip install "hf-detr[export]")') from error
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return exporter.export(graph, inputs, config)


def _sides_px(size: dict[str, int]) -> tuple[int, int]:
    """Height and width to try the graph with: of the order of the processor's, and no larger than a trial needs."""
    nominal = size.get("shortest_edge") or min(value for value in size.values() if value)
    side = max(64, min(nominal, 384))
    return side, side + side // 3
