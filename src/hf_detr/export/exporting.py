"""Writes a model as a folder that runs without this package, after its answers were compared with the model's."""

import math
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..image_processing_detr import DetrImageProcessor
from ..modeling_detr import DetrForObjectDetection
from ..modeling_detr_segmentation import DetrForSegmentation
from .card import card
from .graph import DetectorGraph
from .inference_script import RUNTIMES, inference_script
from .loading import ExportedDetector
from .parity import Difference, trial_inputs, worst_difference
from .precision import PRECISIONS, in_precision

# our name -> that of transformers.exporters. OpenVINO reads the ONNX graph: what its own exporter makes of symbolic
# heights and widths does not run on other shapes (openvino 2026.4).
FORMATS = {"onnx": "onnx", "openvino": "onnx", "executorch": "executorch", "torch": "dynamo"}
_NEEDS = 'pip install "hf-detr[export]"'
_MOST_DIFFERENT = 1e-3  # of float32; other precisions differ as they must, and are judged by AP


@dataclass(frozen=True)
class Quality:
    """What a model is judged by, before and after export: `measure(model)` is `name`'s value, the higher the better."""

    measure: Callable[[nn.Module], float]
    name: str = "AP"
    max_loss: float = 0.02


@dataclass(frozen=True)
class Written:
    """What was written: the largest difference from the model, sizes (of the folder's graph, and of the weights in
    float32), and the quality of the model and of what was written, where it was measured."""

    difference: Difference
    size_bytes: int
    weight_bytes: int
    quality_name: str = ""
    quality_before: float = math.nan
    quality_after: float = math.nan


class Exporter:
    """Writes one model in several formats and precisions; what several share is traced once.

    The graph computes with folded norms; `model` stays as it is. With `post_process` it takes `target_sizes` too and
    gives scores, labels and boxes in pixels. Raises ValueError for weights that are not finite.
    """

    def __init__(
        self,
        model: DetrForObjectDetection | DetrForSegmentation,
        processor: DetrImageProcessor,
        *,
        post_process: bool = False,
    ):
        self.model, self.processor, self.graph = model, processor, DetectorGraph(model, post_process)
        self.sides_px = _sides_px(processor.size)
        self._exports: dict[str, Any] = {}  # of transformers.exporters, by its name of the format

    def write(
        self,
        folder: str | Path,
        format: str = "onnx",
        precision: str = "fp32",
        *,
        calibration: Iterable[Tensor] = (),
        quality: Quality | None = None,
        max_difference: float | None = None,
        overwrite: bool = False,
    ) -> Written:
        """Writes `folder`: the graph with dynamic batch, height and width and with its `pixel_mask`, config.json with
        the labels, preprocessor_config.json, a card, and for ONNX and OpenVINO `inference.py`, which needs their
        runtime, numpy and Pillow alone.

        What was written is loaded, and its outputs are compared with the model's on three inputs unlike the one it was
        traced with, one padded and one of another batch: differences of logits or scores, of boxes as shares of the
        image, of masks as probabilities.

        Args:
            format: one of `FORMATS`.
            precision: one of `PRECISIONS`; other than "fp32" for "onnx" and "openvino" alone.
            calibration: for "int8-static", images as the processor makes them, each (B, C, H, W), no padding.
            quality: measured of the model and of what was written, and a loss above its `max_loss` refused.
            max_difference: what may be the largest difference; default 1e-3 for "fp32" and any for others.
            overwrite: replace a folder that is not empty.

        Raises:
            ImportError: without the packages of the extra `export`, or with a transformers without exporters.
            ValueError: an unknown format or precision, a folder that is not empty, a model that the format cannot hold,
                a difference above `max_difference`, with its output, or a loss of quality; nothing is written then.
            OSError: a full disk.
        """
        folder, calibration = Path(folder), list(calibration)
        _check(folder, format, precision, calibration, overwrite)
        if max_difference is None:
            max_difference = _MOST_DIFFERENT if precision == "fp32" else math.inf
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as temporary:
            part = Path(temporary) / "part"
            try:
                self._write_graph(part, format, precision, calibration)
                written = ExportedDetector(part)
            except ImportError as error:
                raise ImportError(f"{format}: {error}; {_NEEDS} brings what is missing.") from error
            trials = trial_inputs(self.graph.config.num_channels, self.sides_px, self.graph.post_process)
            worst = worst_difference(self.graph, written.run, trials)
            if not worst.value <= max_difference or math.isinf(worst.value):
                raise ValueError(
                    f"{format}: {worst.output} differ by {worst.value:.2g} from the model's with {worst.where}, more "
                    f"than {max_difference:g}; nothing was written. Other versions of torch or {format} may do better."
                )
            self.processor.save_pretrained(part)
            size = sum(file.stat().st_size for file in part.glob("model.*"))
            report = Written(worst, size, self.graph.weight_bytes)
            if quality is not None:
                report = self._judged(report, written, quality, f"{format} in {precision}")
            del written  # it holds the files open
            script = inference_script(format, self.graph)
            if script is not None:
                (part / "inference.py").write_text(script, encoding="utf-8")
            (part / "README.md").write_text(card(format, precision, self.graph, report), encoding="utf-8")
            if folder.exists():
                shutil.rmtree(folder)
            part.rename(folder)
        return report

    def _judged(self, report: Written, written: nn.Module, quality: Quality, what: str) -> Written:
        """The report with the quality of both. Raises ValueError for a loss that is too large."""
        before, after = quality.measure(self.model), quality.measure(written)
        if not before - after <= quality.max_loss:
            raise ValueError(
                f"{what}: {quality.name} falls from {before:.3f} to {after:.3f}, by more than {quality.max_loss:g}; "
                "nothing was written. int8 loses less than int8-static, and fp16 and bf16 less than int8."
            )
        return Written(report.difference, report.size_bytes, report.weight_bytes, quality.name, before, after)

    def _write_graph(self, folder: Path, format: str, precision: str, calibration: list[Tensor]) -> None:
        """Writes graph and config.json."""
        exported = self._traced(format)
        try:
            if FORMATS[format] == "onnx":
                inputs = [self.graph.inputs_of(pixels) for pixels in calibration]
                exported = _in_precision(exported, precision, inputs, self._inputs())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exported.save_pretrained(folder)
            if format == "openvino":
                _as_openvino(folder)
        except (ImportError, ValueError):
            raise
        except Exception as error:  # of C++ as well, which raises no OSError
            if _reason(error).startswith("Failed serializing"):  # an operator, by torch.export
                raise ValueError(f"{format} cannot hold this model ({_reason(error)}); try another format.") from error
            raise OSError(
                f"{format} could not be written ({_reason(error)}); free some space, or try another."
            ) from error

    def _traced(self, format: str) -> Any:
        """The graph as `transformers.exporters` has it."""
        from transformers.exporters import AutoExportConfig, AutoHfExporter

        name = FORMATS[format]
        config = AutoExportConfig.from_dict({"export_format": name, "dynamic": True})
        exporter = AutoHfExporter.from_config(config)
        if format in RUNTIMES:  # before the work, not after
            import_module(RUNTIMES[format].package)
        if name not in self._exports:
            try:
                with torch.no_grad(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    self._exports[name] = exporter.export(self.graph, self._inputs(), config)
            except Exception as error:  # of a tracer: any kind, and pages long
                raise ValueError(f"{format} cannot hold this model ({_reason(error)}); try another format.") from error
            if name == "onnx":
                _forget_sources(self._exports[name].program)
        return self._exports[name]

    def _inputs(self) -> dict[str, Tensor]:
        """What the graph is traced with: a batch of two, one of them padded."""
        trials = trial_inputs(self.graph.config.num_channels, self.sides_px, self.graph.post_process, seed=1)
        _, inputs = next(trials)
        inputs = {name: torch.cat((value, value)) for name, value in inputs.items()}
        inputs["pixel_mask"][1, self.sides_px[0] // 2 :] = 0
        return inputs


def export_model(
    model: DetrForObjectDetection | DetrForSegmentation,
    processor: DetrImageProcessor,
    folder: str | Path,
    format: str = "onnx",
    precision: str = "fp32",
    *,
    post_process: bool = False,
    **options: Any,
) -> Written:
    """One folder of one model: `Exporter(model, processor, post_process=...).write(folder, format, precision, ...)`."""
    return Exporter(model, processor, post_process=post_process).write(folder, format, precision, **options)


def _check(folder: Path, format: str, precision: str, calibration: list[Tensor], overwrite: bool) -> None:
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is none of {', '.join(FORMATS)}.")
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is none of {', '.join(PRECISIONS)}.")
    if precision != "fp32" and FORMATS[format] != "onnx":
        raise ValueError(f"{format} is written in fp32 alone; take onnx or openvino for {precision}.")
    if precision == "int8-static" and not calibration:
        raise ValueError("int8-static needs images to calibrate with (calibration, --data); int8 needs none.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not overwrite:
        raise ValueError(f"{folder} exists and is not empty; name another folder, or say overwrite=True (--overwrite).")


def _in_precision(exported: Any, precision: str, calibration: list[dict], traced: dict[str, Tensor]) -> Any:
    """The export with its graph in another precision."""
    from transformers.exporters import ExportedComponent, ExportedModel

    (component,) = exported.components.values()
    program = in_precision(component.program, precision, calibration, traced)
    return ExportedModel({"model": ExportedComponent(program, component.metadata)}, "onnx", config=exported.config)


def _forget_sources(program: Any) -> None:
    """Drops the lines of source, with the paths of this machine, that the tracer writes to each node: a megabyte."""
    for graph in program.graphs():
        graph.metadata_props.clear()
        for value in graph.initializers.values():
            value.metadata_props.clear()
        for node in graph:
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()


def _as_openvino(folder: Path) -> None:
    """Turns the ONNX graph of a folder into OpenVINO's, at the precision that it has."""
    import openvino

    model = openvino.Core().read_model(folder / "model.onnx")
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    for name in ("model.onnx", "model.onnx.data", "export.json"):
        (folder / name).unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next((line[:200] for line in lines if line), type(error).__name__)


def _sides_px(size: dict[str, int]) -> tuple[int, int]:
    """Height and width to try the graph with: of the order of the processor's, and no larger than a trial needs."""
    nominal = size.get("shortest_edge") or min(value for value in size.values() if value)
    side = max(64, min(nominal, 384))
    return side, side + side // 3
