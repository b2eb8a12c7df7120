"""Emulate FP16 rounding and overflow of a graph on a CPU.

onnxruntime's CPU provider has hardly any FP16 kernels. It runs such nodes in FP32 between inserted casts and then
removes these casts, at every optimization level: a chain of FP16 nodes neither rounds nor overflows, and its score is
meaningless. Casts that are part of the graph are kept, so `emulate_half` makes FP16 explicit: every tensor is FP32, and
the result of each node that rounds is cast to FP16 and back. A GPU with FP32 accumulation computes the same; kernels
that also accumulate in FP16 can be worse.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from rtdetr_tool.errors import UserError

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16

# Nodes that only move or select values: they do not round and may run in either precision.
# fmt: off
MOVING = frozenset({
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Concat", "Gather",
    "GatherElements", "GatherND", "Expand", "Tile", "Identity", "Relu", "MaxPool", "GlobalMaxPool", "Max",
    "Min", "Clip", "Neg", "Abs", "Where", "Pad", "DepthToSpace", "SpaceToDepth", "ReduceMax", "ReduceMin",
    "TopK", "Dropout", "ScatterElements", "ScatterND",
})
# fmt: on


def emulate_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph with the same inputs and outputs that computes FP16 parts in FP32 and rounds each result to FP16.

    A graph without FP16 tensors is returned as an equal copy.
    """
    types = element_types(model)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    half = {name for name, kind in types.items() if kind == HALF}
    if not half:
        return result
    for tensor in graph.initializer:
        if tensor.data_type == HALF:
            tensor.CopyFrom(_widened(tensor))
    nodes: list[NodeProto] = []
    for value in graph.input:
        if value.name in half:
            nodes += [helper.make_node("Cast", [value.name], [_wide(value.name)], to=FLOAT)]
    renamed = {value.name: _wide(value.name) for value in graph.input if value.name in half}
    renamed |= {value.name: _wide(value.name) for value in graph.output if value.name in half}
    for node in graph.node:
        nodes += _in_single(node, half, renamed)
    for value in graph.output:
        if value.name in half:
            nodes.append(helper.make_node("Cast", [renamed[value.name]], [value.name], to=HALF))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return result


def _in_single(node: NodeProto, half: set[str], renamed: dict[str, str]) -> list[NodeProto]:
    """The node in FP32, followed by a rounding of each output that was FP16."""
    if holds_graph(node) and half & {*node.input, *node.output}:
        raise UserError(f"{node.name}: FP16 around or inside {node.op_type} cannot be scored on a CPU")
    wide = NodeProto()
    wide.CopyFrom(node)
    for attribute in wide.attribute:
        if attribute.name == "to" and attribute.i == HALF:
            attribute.i = FLOAT
        elif attribute.HasField("t") and attribute.t.data_type == HALF:
            attribute.t.CopyFrom(_widened(attribute.t))
    wide.input[:] = [renamed.get(name, name) for name in node.input]
    wide.output[:] = [renamed.get(name, name) for name in node.output]
    if node.op_type in MOVING:
        return [wide]
    rounding: list[NodeProto] = []
    for slot, name in enumerate(node.output):
        if name in half:
            target = wide.output[slot]
            exact, short = target + "/exact", target + "/half"
            wide.output[slot] = exact
            rounding.append(helper.make_node("Cast", [exact], [short], to=HALF))
            rounding.append(helper.make_node("Cast", [short], [target], to=FLOAT))
    return [wide, *rounding]


def _wide(name: str) -> str:
    return name + "/float"


def _widened(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor, as far as ONNX's shape inference determines it."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        if value.type.HasField("tensor_type"):
            types[value.name] = value.type.tensor_type.elem_type
    return types


def holds_graph(node: NodeProto) -> bool:
    """Whether a node (If, Loop, Scan) has subgraphs."""
    return any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute)
