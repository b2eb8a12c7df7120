"""Quantized activations as OpenVINO computes them correctly.

OpenVINO's CPU plugin (2026.4 at least) computes signed activations as unsigned ones. Behind a concatenation the result
is wrong: the output of a convolution that reads it differs by 20 to 30 % on average. With an unsigned type and the zero
point 128 in the graph, the values that a tensor can have are the same, and the result is correct.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

_OFFSET = 128  # uint8 number of the int8 number 0


def with_unsigned_activations(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which activations of convolutions are quantized to uint8 instead of int8, with the same values.

    Others are unchanged, because OpenVINO cannot compile linear layers with a zero point, and computes those with
    signed activations correctly.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    linear = {name for node in graph.node if node.op_type in ("MatMul", "Gemm") for name in node.input}
    of_linear = {node.input[0] for node in graph.node if node.output[0] in linear}  # through DequantizeLinear
    quantized = {
        node.output[0] for node in graph.node if node.op_type == "QuantizeLinear" and node.output[0] not in of_linear
    }
    replaced: dict[str, str] = {}
    for node in graph.node:
        if not (node.output[0] in quantized or (node.op_type == "DequantizeLinear" and node.input[0] in quantized)):
            continue
        zero = constants[node.input[2]]
        if zero.data_type != onnx.TensorProto.INT8:
            continue
        if zero.name not in replaced:
            replaced[zero.name] = f"{zero.name}/unsigned"
            numbers = (numpy_helper.to_array(zero).astype(np.int16) + _OFFSET).astype(np.uint8)
            graph.initializer.append(numpy_helper.from_array(numbers, replaced[zero.name]))
        node.input[2] = replaced[zero.name]
    return result
