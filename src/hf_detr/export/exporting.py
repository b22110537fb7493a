"""Writes a detector as a folder that runs without this package, after its answers were compared with the model's."""

import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..image_processing_detr import DetrImageProcessor
from ..modeling_detr import DetrForObjectDetection
from .graph import DetectorGraph
from .parity import Difference, trial_inputs, worst_difference
from .text import card, inference_script

Runs = Callable[..., dict[str, Tensor]]

# our name -> that of transformers.exporters. OpenVINO reads the ONNX graph: what its own exporter makes of symbolic
# heights and widths does not run on other shapes (openvino 2026.4).
FORMATS = {"onnx": "onnx", "openvino": "onnx", "executorch": "executorch", "torch": "dynamo"}
_NEEDS = 'pip install "hf-detr[export]"'


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
    """Writes `folder`: the graph with dynamic batch, height and width and with its `pixel_mask`, config.json with the
    labels, preprocessor_config.json, a card, and for ONNX and OpenVINO `inference.py`, which needs their runtime, numpy
    and Pillow alone.

    The graph computes in float32 with folded norms; `model` stays as it is. Its outputs are compared with the model's
    on three inputs unlike the one it was traced with, one padded and one of another batch; returned is the largest
    difference (of logits or scores, and of boxes as shares of the image).

    Args:
        format: one of `FORMATS`.
        post_process: the graph takes `target_sizes` too and gives scores, labels and boxes in pixels.
        max_difference: what may be the largest difference.
        overwrite: replace a folder that is not empty.

    Raises:
        ImportError: without the packages of the extra `export`, or with a transformers without exporters.
        ValueError: an unknown format, a folder that is not empty, a model that the format cannot hold, or a difference
            above `max_difference`, with its output; nothing is written then.
        OSError: a full disk.
    """
    folder = Path(folder)
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is none of {', '.join(FORMATS)}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not overwrite:
        raise ValueError(f"{folder} exists and is not empty; name another folder, or say overwrite=True (--overwrite).")
    graph, sides_px = DetectorGraph(model, post_process), _sides_px(processor.size)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as temporary:
        part = Path(temporary) / "part"
        run = _write(graph, format, sides_px, part)
        worst = worst_difference(graph, run, trial_inputs(graph.config.num_channels, sides_px, post_process))
        if not worst.value <= max_difference:
            raise ValueError(
                f"{format}: {worst.output} differ by {worst.value:.2g} from the model's with {worst.where}, more than "
                f"{max_difference:g}; nothing was written. Other versions of torch or {format} may do better."
            )
        processor.save_pretrained(part)
        size = sum(file.stat().st_size for file in part.iterdir())
        script = None if post_process else inference_script(format)
        if script is not None:
            (part / "inference.py").write_text(script, encoding="utf-8")
        (part / "README.md").write_text(card(format, graph.config, worst, size, post_process), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    return worst


def _write(graph: DetectorGraph, format: str, sides_px: tuple[int, int], folder: Path) -> Runs:
    """Writes graph and config.json, and returns what runs the graph."""
    try:
        from transformers.exporters import AutoExportConfig, AutoHfExporter
    except ImportError as error:
        raise ImportError(f"This transformers has no exporters; {_NEEDS} brings one that has.") from error
    config = AutoExportConfig.from_dict({"export_format": FORMATS[format], "dynamic": True})
    try:
        exporter = AutoHfExporter.from_config(config)
        if format == "openvino":
            import openvino  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{format}: {error} ({_NEEDS})") from error
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = exporter.export(graph, _traced_inputs(graph, sides_px), config)
    except Exception as error:  # of a tracer: any kind, and pages long
        raise ValueError(f"{format} cannot hold this model ({_reason(error)}); try another format.") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported.save_pretrained(folder)
        return _as_openvino(folder) if format == "openvino" else exported
    except Exception as error:  # of C++ as well, which raises no OSError
        raise OSError(f"{format} could not be written ({_reason(error)}); free some space, or try another.") from error


def _reason(error: Exception) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next((line[:200] for line in lines if line), type(error).__name__)


def _as_openvino(folder: Path) -> Runs:
    """Turns the ONNX graph of a folder into OpenVINO's; float32 everywhere, which it leaves for bfloat16 where the
    processor has it unless it is told."""
    import openvino

    core = openvino.Core()
    openvino.save_model(core.read_model(folder / "model.onnx"), folder / "model.xml", compress_to_fp16=False)
    for name in ("model.onnx", "model.onnx.data", "export.json"):
        (folder / name).unlink(missing_ok=True)
    compiled = core.compile_model(folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(**inputs: Tensor) -> dict[str, Tensor]:
        results = compiled({name: value.numpy() for name, value in inputs.items()})
        return {output.get_any_name(): torch.tensor(results[output]) for output in compiled.outputs}

    return run


def _traced_inputs(graph: DetectorGraph, sides_px: tuple[int, int]) -> dict[str, Tensor]:
    """A batch of two, one of them padded."""
    (_, inputs), *_ = trial_inputs(graph.config.num_channels, sides_px, graph.post_process, seed=1)
    inputs = {name: torch.cat((value, value)) for name, value in inputs.items()}
    inputs["pixel_mask"][1, sides_px[0] // 2 :] = 0
    return inputs


def _sides_px(size: dict[str, int]) -> tuple[int, int]:
    """Height and width to try the graph with: of the order of the processor's, and no larger than a trial needs."""
    nominal = size.get("shortest_edge") or min(value for value in size.values() if value)
    side = max(64, min(nominal, 384))
    return side, side + side // 3
