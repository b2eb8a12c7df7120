"""A bias for every quantized layer, without which OpenVINO computes what follows wrongly.

OpenVINO's CPU plugin (2026.4 at least) moves the scales of a layer's output channels into the next quantization, and
only an addition stops it. Behind a pooling, a transposition or a concatenation they then belong to wrong elements: the
outputs differ by 5 to 100 %, without an error, or the graph cannot be compiled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

_BIAS = np.float32(1e-30)  # changes no output; OpenVINO would remove zeros


def with_biases(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which quantized layers without bias, or with zeros, have one that changes no output."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    scales = {  # of weights, per output channel
        node.output[0]: constants[node.input[1]]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in scales:
            continue
        if not _lacks_bias(node, readers[node.output[0]], constants):
            continue
        bias = f"{node.output[0]}/bias"
        graph.initializer.append(numpy_helper.from_array(np.full(scales[node.input[1]].dims, _BIAS), bias))
        if node.op_type == "MatMul":
            output, product = node.output[0], f"{node.output[0]}/product"
            node.output[0] = product
            nodes.append(helper.make_node("Add", [product, bias], [output], name=bias))
        else:
            del node.input[2:]
            node.input.append(bias)
    del graph.node[:]
    graph.node.extend(nodes)
    return result


def _lacks_bias(layer: NodeProto, readers: list[NodeProto], constants: Mapping[str, TensorProto]) -> bool:
    """Whether OpenVINO sees no addition of a constant vector right after the products."""
    if layer.op_type != "MatMul":
        return all(name in constants and not _has_values(constants[name]) for name in layer.input[2:] if name)
    if len(readers) != 1 or readers[0].op_type != "Add":
        return True
    added = [constants[name] for name in readers[0].input if name in constants]
    return not any(len(tensor.dims) == 1 and _has_values(tensor) for tensor in added)


def _has_values(tensor: TensorProto) -> bool:
    return bool(numpy_helper.to_array(tensor).any())
