"""Name the precision of an ONNX graph from its operators and the types of its tensors."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto, helper

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
# Operators that compute in integers, as other tools write them.
_INTEGER_OPERATORS = {
    "ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QGemm", "QLinearConv", "QLinearMatMul",
}  # fmt: skip
_QUANTIZED: dict[int, str] = {
    TensorProto.INT8: "INT8",
    TensorProto.UINT8: "INT8",
    TensorProto.FLOAT8E4M3FN: "FP8",
    TensorProto.FLOAT8E5M2: "FP8",
    TensorProto.INT4: "INT4",
    TensorProto.UINT4: "INT4",
    TensorProto.INT16: "INT16",
    TensorProto.UINT16: "INT16",
}
_HALF: dict[int, str] = {TensorProto.FLOAT16: "FP16", TensorProto.BFLOAT16: "BF16"}


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether a part of the weights or activations is quantized."""
    return any(node.op_type in {DEQUANTIZE, *_INTEGER_OPERATORS} for node in model.graph.node)


def precision_name(model: onnx.ModelProto) -> str:
    """`FP32`, or the lower formats of the graph, such as `FP16`, `INT8`, `INT8 weights` and `INT8 and FP16`.

    Weights without quantized activations are computed in FP32 or FP16.
    """
    types = dict(_types(model.graph))
    names = [_HALF[kind] for kind in dict.fromkeys(types.values()) if kind in _HALF]
    if is_quantized(model):
        operators = {node.op_type for node in model.graph.node}
        inputs = {types.get(node.input[0]) for node in model.graph.node if node.op_type == DEQUANTIZE}
        formats = sorted({_QUANTIZED[kind] for kind in inputs if kind in _QUANTIZED}, reverse=True) or ["INT8"]
        weights_only = not operators & {QUANTIZE, *_INTEGER_OPERATORS}
        names = [" and ".join(formats) + (" weights" if weights_only else ""), *names]
    return " and ".join(names) or "FP32"


def _types(graph: onnx.GraphProto) -> Iterator[tuple[str, int]]:
    """Name and element type of constants and of the outputs of Q nodes, as far as the graph states them."""
    constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t.data_type
    yield from constants.items()
    for node in graph.node:
        if node.op_type == QUANTIZE:
            attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
            zero_point = constants.get(node.input[2]) if len(node.input) > 2 else None
            yield node.output[0], attributes.get("output_dtype") or zero_point or TensorProto.UINT8
