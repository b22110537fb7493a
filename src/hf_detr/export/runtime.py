"""Runs the graph of an exported folder on arrays; needs its runtime and numpy, and not torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[[dict[str, Any]], dict[str, Any]]  # arrays by input -> arrays by output


def open_graph(folder: str | Path, threads: int | None = None) -> Run:
    """What runs `model.onnx` or `model.xml` of a folder on the CPU, with as many threads as the runtime sees fit.

    Raises FileNotFoundError for a folder without either, ImportError without its runtime.
    """
    folder = Path(folder)
    if (folder / "model.onnx").is_file():
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))
    if not (folder / "model.xml").is_file():
        raise FileNotFoundError(f"{folder}: no model.onnx or model.xml; name a folder that hf-detr export wrote.")
    import openvino

    # it leaves float32 for bfloat16 where the processor has it, unless it is set otherwise
    settings = {"INFERENCE_PRECISION_HINT": "f32"} | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", settings)
    outputs = {output.get_any_name(): output for output in compiled.outputs}

    def run(inputs: dict[str, Any]) -> dict[str, Any]:
        results = compiled(inputs)
        return {name: results[output].copy() for name, output in outputs.items()}

    return run
