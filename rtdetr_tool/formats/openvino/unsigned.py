"""Quantized activations as OpenVINO computes them correctly.

OpenVINO's CPU plugin (2026.4 at least) computes signed activations as unsigned ones. Behind a concatenation the result
is wrong: the output of a convolution that reads it differs by 20 to 30 % on average. With an unsigned type and the zero
point 128 in the graph, the values that a tensor can have are the same, and the result is correct.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

_OFFSET = 128  # uint8 number of the int8 number 0
_LINEAR = ("MatMul", "Gemm")
_SUFFIX = "/unsigned"


def with_unsigned_activations(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which activations that anything but a linear layer reads are uint8 instead of int8, with equal values.

    Linear layers read int8, because OpenVINO cannot compile them with a zero point, and computes them correctly.
    An activation that a linear layer and another node read is quantized for each of them.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            readers[name].append(node)
    added: dict[str, list[NodeProto]] = {}
    for node in list(graph.node):
        if node.op_type != "DequantizeLinear" or node.input[0] in constants:  # not of a weight
            continue
        zero, of_output = constants[node.input[2]], readers[node.output[0]]
        others = [reader for reader in of_output if reader.op_type not in _LINEAR]
        if zero.data_type != onnx.TensorProto.INT8 or not others:
            continue
        pair = [next(each for each in graph.node if each.output[0] == node.input[0]), node]
        if len(others) < len(of_output):
            pair = added[node.name] = _copies(pair)
            for reader in others:
                _rename(reader, node.output[0], pair[1].output[0])
        if zero.name + _SUFFIX not in constants:
            numbers = (numpy_helper.to_array(zero).astype(np.int16) + _OFFSET).astype(np.uint8)
            graph.initializer.append(numpy_helper.from_array(numbers, zero.name + _SUFFIX))
            constants[zero.name + _SUFFIX] = graph.initializer[-1]
        for each in pair:
            each.input[2] = zero.name + _SUFFIX
    nodes = [each for node in graph.node for each in (node, *added.get(node.name, ()))]
    if added:
        del graph.node[:]
        graph.node.extend(nodes)
    return result


def _copies(pair: list[NodeProto]) -> list[NodeProto]:
    """The same nodes QuantizeLinear and DequantizeLinear under other names."""
    copies = []
    for node in pair:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.name, copy.output[0] = node.name + _SUFFIX, node.output[0] + _SUFFIX
        copies.append(copy)
    copies[1].input[0] = copies[0].output[0]
    return copies


def _rename(node: NodeProto, old: str, new: str) -> None:
    """Read another tensor."""
    for slot, name in enumerate(node.input):
        if name == old:
            node.input[slot] = new
