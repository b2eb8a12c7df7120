"""Write the precision of each node into a graph: FP16 weights, and casts where FP16 and FP32 regions meet."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from rtdetr_tool.formats.onnx.half_emulation import FLOAT, HALF, MOVING, holds_graph
from rtdetr_tool.formats.precision.graph import HEAVY, Graph, captured

CAST_PREFIX = "precision/"
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass
class CastGraph:
    model: onnx.ModelProto
    half: set[str]  # names of the nodes that run in FP16
    casts: int


# Selecting nodes


def half_nodes(graph: Graph, kept: Collection[str]) -> set[str]:
    """Names of the nodes to run in FP16 if `kept` stay in FP32.

    Nodes that only move values get the precision of their neighbors, and FP16 islands without a heavy node stay in
    FP32: both save casts at no cost. Q nodes follow the node before them, DQ nodes those after them, so that there is
    no cast between a DQ node and the node with which it is fused.
    """
    able = {node.name for node in graph.nodes if any(graph.half_slots(node))}
    half = able - set(kept)
    following = half & {node.name for node in graph.nodes if node.op_type in MOVING | {QUANTIZE, DEQUANTIZE}}
    _follow(graph, half, following)
    for island in _islands(graph, half):
        if not any(graph.by_name[name].op_type in HEAVY for name in island):
            half -= island
    _follow(graph, half, following)
    return half


def _follow(graph: Graph, half: set[str], following: set[str]) -> None:
    """Give each follower the precision of its producers; then, from the end, that of its readers if all agree."""
    for node in graph.nodes:
        if node.name not in following or node.op_type == DEQUANTIZE:
            continue
        makers = [maker for maker in graph.sources(node) if any(graph.half_slots(maker))]
        if makers:
            _set(half, node.name, all(maker.name in half for maker in makers))
        elif node.op_type == QUANTIZE:
            half.discard(node.name)  # reads the images, which are FP32
    for node in reversed(graph.nodes):
        if node.name not in following or node.op_type == QUANTIZE or set(node.output) & set(graph.outputs):
            continue
        readers = {reader.name in half for reader in graph.targets(node) if any(graph.half_slots(reader))}
        if len(readers) == 1:
            _set(half, node.name, readers.pop())


def _set(half: set[str], name: str, is_half: bool) -> None:
    (half.add if is_half else half.discard)(name)


def _islands(graph: Graph, half: set[str]) -> list[set[str]]:
    """Connected groups of FP16 nodes."""
    left, islands = set(half), []
    while left:
        stack = [left.pop()]
        island = set(stack)
        while stack:
            node = graph.by_name[stack.pop()]
            near = {n.name for n in (*graph.sources(node), *graph.targets(node))} & left
            left -= near
            island |= near
            stack.extend(near)
        islands.append(island)
    return islands


# Writing


def write_half(graph: Graph, half: Collection[str]) -> CastGraph:
    """The model with the nodes `half` in FP16; graph inputs and outputs keep type and name. `graph` is not changed.

    A tensor is cast once, right after its producer, for all readers. Weights are stored in the precision that is read.
    """
    result = onnx.ModelProto()
    result.CopyFrom(graph.model)
    writer = _Writer(graph, set(half))
    nodes = {node.name: writer.rewritten(node) for node in graph.nodes}
    ordered = [cast for name in graph.inputs for cast in writer.cast_of(name)]
    for name, node in nodes.items():
        ordered.append(node)
        ordered += [cast for output in graph.by_name[name].output for cast in writer.cast_of(output)]
    del result.graph.node[:], result.graph.value_info[:]
    result.graph.node.extend(ordered)
    writer.store_weights(result.graph)
    return CastGraph(result, set(half), len(ordered) - len(nodes))


class _Writer:
    """The names of each tensor in FP16 and FP32, and which of them are read."""

    def __init__(self, graph: Graph, half: set[str]) -> None:
        self.graph, self.half = graph, half
        self.made_half = {
            graph.by_name[name].output[slot] for name in half for slot in graph.half_slots(graph.by_name[name])[1]
        }
        # These keep their name in FP32, because it is used outside of the graph or in a subgraph.
        self.public = set(graph.outputs) | {n for node in graph.nodes if holds_graph(node) for n in captured(node)}
        self.read: set[str] = set(self.public)

    def form(self, name: str, is_half: bool) -> str:
        """The name of a float tensor in FP16 or FP32."""
        if name in self.made_half and name not in self.public:
            return name if is_half else name + "/float"
        return name + "/half" if is_half else name

    def rewritten(self, original: NodeProto) -> NodeProto:
        """A copy of the node that reads and writes tensors of its precision."""
        node = NodeProto()
        node.CopyFrom(original)
        slots = self.graph.half_slots(original)[0] if original.name in self.half else []
        for slot, name in enumerate(node.input):
            if self.graph.is_float(name):
                node.input[slot] = self.form(name, slot in slots)
                self.read.add(node.input[slot])
        for slot, name in enumerate(node.output):
            if name in self.made_half:
                node.output[slot] = self.form(name, True)
        return node

    def cast_of(self, name: str) -> list[NodeProto]:
        """The cast of a tensor to the other precision, if that is read."""
        if not self.graph.is_float(name) or name in self.graph.initializers:
            return []
        is_half = name in self.made_half
        source, target = self.form(name, is_half), self.form(name, not is_half)
        if target not in self.read:
            return []
        return [helper.make_node("Cast", [source], [target], name=CAST_PREFIX + target, to=FLOAT if is_half else HALF)]

    def store_weights(self, result: onnx.GraphProto) -> None:
        """Keep FP32 weights that are read in FP32, and add FP16 weights."""
        halves = [n for n in self.graph.initializers if self.graph.is_float(n) and self.form(n, True) in self.read]
        unread = {name for name in halves if name not in self.read}
        kept = [tensor for tensor in result.initializer if tensor.name not in unread]
        kept += [half_tensor(self.graph.initializers[name], self.form(name, True)) for name in halves]
        inputs = [value for value in result.input if value.name not in unread]
        del result.initializer[:], result.input[:]
        result.initializer.extend(kept)
        result.input.extend(inputs)


def half_tensor(tensor: TensorProto, name: str) -> TensorProto:
    with np.errstate(over="ignore"):
        return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name)
