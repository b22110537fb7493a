"""Other precisions of an ONNX graph: weights of 16 bits, and int8 by ONNX Runtime's quantiser.

OpenVINO reads the same graphs. Its own quantiser, nncf, is left alone: it reports its use to a server unless set not
to.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir

PRECISIONS = {
    "fp32": "float32",
    "fp16": "weights in float16, computed in float32",
    "bf16": "weights in bfloat16, computed in float32",
    "int8": "linear layers in int8, their inputs scaled at each call",
    "int8-static": "convolutions and linear layers but the heads' in int8, their inputs scaled by calibration images",
}
_LINEAR = ["MatMul", "Gemm"]
_STATIC = ["Conv", *_LINEAR]
_KEPT_BELOW = 64  # numbers of a constant that stay in float32: biases of heads, scales


def in_precision(
    graph: "onnx_ir.Model", precision: str, calibration: Iterable[Mapping[str, Any]], traced: dict[str, Any]
) -> "onnx_ir.Model":
    """A copy of a float32 graph in one of `PRECISIONS`, or the graph itself for "fp32".

    `calibration` holds inputs by name, for "int8-static"; `traced` those that the graph was traced with.

    Raises ValueError for weights beyond the range of float16, ImportError without ONNX Runtime or with a transformers
    without its quantisers.
    """
    if precision == "fp32":
        return graph
    if precision in ("fp16", "bf16"):
        return _with_weights_of(graph, precision)
    from transformers.exporters import (
        ExportFormat,
        OnnxRuntimeDynamicConfig,
        OnnxRuntimeQuantizer,
        OnnxRuntimeStaticConfig,
    )

    if precision == "int8":
        config: Any = OnnxRuntimeDynamicConfig(op_types_to_quantize=_LINEAR, per_channel=True)
    else:
        config = OnnxRuntimeStaticConfig(
            op_types_to_quantize=_STATIC, per_channel=True, nodes_to_exclude=_sensitive(graph.graph)
        )
    # the tracer has inferred shapes and optimised; without this word the quantiser asks for both, on the root logger
    graph.metadata_props["onnx.quant.pre_process"] = "onnxruntime.quant"
    quantiser = OnnxRuntimeQuantizer(config, calibration_dataset=list(calibration))
    return quantiser.quantize(graph, traced, ExportFormat.ONNX)


def _sensitive(graph: "onnx_ir.Graph") -> list[str]:
    """The nodes that stay in float32: the heads, from the last norm to the outputs, the last convolution of masks, and
    products of two activations in attention. Of the small checkpoint's AP they keep 0.734 in place of 0.726 of 0.742.
    """
    heads: set[str] = set()
    waiting = [value.producer() for value in graph.outputs]
    while waiting:
        node = waiting.pop()
        if node is None or node.name in heads or node.op_type == "LayerNormalization":
            continue
        heads.add(node.name)
        if node.op_type != "Conv":
            waiting += [value.producer() for value in node.inputs if value is not None]
    has_weights = {
        node.name for node in graph if any(value is not None and value.const_value is not None for value in node.inputs)
    }
    return [
        node.name for node in graph if node.op_type in _STATIC and (node.name in heads or node.name not in has_weights)
    ]


def _with_weights_of(graph: "onnx_ir.Model", precision: str) -> "onnx_ir.Model":
    """The weights in 16 bits, each followed by a cast, which runtimes compute once, when they load the graph."""
    import onnx_ir

    dtype = {"fp16": onnx_ir.DataType.FLOAT16, "bf16": onnx_ir.DataType.BFLOAT16}[precision]
    copy = onnx_ir.from_proto(onnx_ir.to_proto(graph))
    inner = copy.graph
    for value in list(inner.initializers.values()):
        weights = value.const_value
        if value.dtype != onnx_ir.DataType.FLOAT or weights.size < _KEPT_BELOW:
            continue
        array = weights.numpy()
        with np.errstate(over="ignore"):  # said below
            narrow = array.astype(dtype.numpy())
        if not np.isfinite(narrow.astype(np.float32)).all():
            raise ValueError(
                f"{value.name}: a weight of {np.abs(array).max():.3g} is beyond the range of {precision}; take bf16."
            )
        kept = onnx_ir.Value(
            name=f"{value.name}_{precision}",
            const_value=onnx_ir.tensor(narrow, dtype=dtype),
            shape=value.shape,
            type=onnx_ir.TensorType(dtype),
        )
        cast = onnx_ir.node("Cast", [kept], attributes={"to": onnx_ir.DataType.FLOAT})
        cast.outputs[0].shape, cast.outputs[0].dtype = value.shape, onnx_ir.DataType.FLOAT
        value.replace_all_uses_with(cast.outputs[0])
        inner.initializers.pop(value.name)
        inner.register_initializer(kept)
        inner.insert_before(inner[0], cast)
    return copy
