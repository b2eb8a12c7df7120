"""Q/DQ nodes where TensorRT fuses them: before convolutions and linear layers, on their weights, on residual inputs.

Activations are symmetric per tensor (zero point 0), weights symmetric per output channel, biases stay floating point.
Nodes are quantized to INT8 unless `NodeFormats` are given for them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from rtdetr_tool.formats.precision.graph import Graph
from rtdetr_tool.formats.precision.number_formats import INT8, INT8_NODE, NodeFormats, NumberFormat

SMALLEST_SCALE = 2.0**-20  # exact to 3 digits in FP16


@dataclass(frozen=True)
class Quantizable:
    """A node that can run in INT8: its activation, its weight and the weight's axis of output channels."""

    node: NodeProto
    activation: str
    weight: str
    axis: int


def quantizable(graph: Graph) -> dict[str, Quantizable]:
    """Convolutions and products with a constant matrix, by node name."""
    targets = {}
    for node in graph.nodes:
        axis = _channel_axis(graph, node)
        if axis is not None and graph.is_float(node.input[0]) and node.input[0] not in graph.initializers:
            targets[node.name] = Quantizable(node, node.input[0], node.input[1], axis)
    return targets


def _channel_axis(graph: Graph, node: NodeProto) -> int | None:
    if len(node.input) < 2 or not graph.is_float(node.input[1]) or node.input[1] not in graph.initializers:
        return None
    rank = len(graph.initializers[node.input[1]].dims)
    if node.op_type == "Conv":
        return 0
    if node.op_type == "MatMul" and rank == 2:
        return 1
    if node.op_type == "Gemm" and rank == 2 and not _attribute(node, "transA"):
        return 0 if _attribute(node, "transB") else 1
    return None


def _attribute(node: NodeProto, name: str) -> int:
    return next((a.i for a in node.attribute if a.name == name), 0)


def residual_inputs(graph: Graph, quantized: Collection[str]) -> dict[str, int]:
    """Additions that TensorRT fuses into a quantized convolution before them: node name -> slot of the other input."""
    order = {node.name: place for place, node in enumerate(graph.nodes)}
    inputs = {}
    for node in graph.nodes:
        if node.op_type != "Add" or any(name in graph.initializers for name in node.input):
            continue
        convolutions = [
            (order[maker.name], slot)
            for slot, name in enumerate(node.input)
            if (maker := graph.producer.get(name)) is not None
            and maker.op_type == "Conv"
            and maker.name in quantized
            and len(graph.readers[name]) == 1
        ]
        if convolutions:
            inputs[node.name] = 1 - max(convolutions)[1]
    return inputs


def place(
    graph: Graph,
    quantized: Collection[str],
    limits: Mapping[str, float],
    half: bool = False,
    formats: Mapping[str, NodeFormats] | None = None,
) -> onnx.ModelProto:
    """The model with Q/DQ nodes around the nodes in `quantized`; `limits` are magnitudes covered per activation.

    With `half`, scales are rounded to values that are exact in FP16. Nodes without `formats` are INT8.
    """
    writer = _Writer(graph, limits, half)
    candidates = quantizable(graph)
    formats = formats or {}
    whole = {name for name in quantized if formats.get(name, INT8_NODE).activations is INT8}
    residual = {k: slot for k, slot in residual_inputs(graph, whole).items() if graph.by_name[k].input[slot] in limits}
    nodes: list[NodeProto] = []
    for original in graph.nodes:
        node = NodeProto()
        node.CopyFrom(original)
        if node.name in quantized:
            target, node_formats = candidates[node.name], formats.get(node.name, INT8_NODE)
            if node_formats.activations is not None:
                node.input[0] = writer.activation(target.activation, node_formats.activations)
            node.input[1] = writer.weight(target.weight, target.axis, node_formats.weights)
        elif node.name in residual:
            slot = residual[node.name]
            node.input[slot] = writer.activation(node.input[slot], INT8)
        nodes += [*writer.take_new(), node]
    result = onnx.ModelProto()
    result.CopyFrom(graph.model)
    del result.graph.node[:], result.graph.value_info[:]
    result.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input} | set(graph.outputs)
    weights = [
        tensor for tensor in result.graph.initializer if tensor.name in read or tensor.name not in writer.replaced
    ]
    inputs = [value for value in result.graph.input if value.name in read or value.name not in writer.replaced]
    del result.graph.initializer[:], result.graph.input[:]
    result.graph.initializer.extend([*weights, *writer.tensors])
    result.graph.input.extend(inputs)
    return result


def scale_name(activation: str, number_format: NumberFormat = INT8) -> str:
    return f"{activation}/scale" if number_format is INT8 else f"{activation}/{number_format.name}/scale"


def scale_of(limit: float | np.ndarray, half: bool, number_format: NumberFormat = INT8) -> np.ndarray:
    """Step of a format for the magnitudes 0 to `limit`; with `half` one that FP16 holds exactly."""
    step = np.asarray(limit, np.float32) / np.float32(number_format.largest)
    scale = np.maximum(step, np.float32(SMALLEST_SCALE))
    return np.asarray(scale.astype(np.float16) if half else scale, np.float32)


class _Writer:
    """Creates each pair of Q and DQ nodes once."""

    def __init__(self, graph: Graph, limits: Mapping[str, float], half: bool) -> None:
        self.graph, self.limits, self.half = graph, limits, half
        self.made: dict[tuple[str | int, ...], str] = {}
        self.new: list[NodeProto] = []
        self.tensors: list[TensorProto] = []
        self.replaced: set[str] = set()

    def take_new(self) -> list[NodeProto]:
        new, self.new = self.new, []
        return new

    def activation(self, name: str, number_format: NumberFormat) -> str:
        key = (name, number_format.name)
        if key not in self.made:
            scale_tensor = scale_name(name, number_format)
            stem = scale_tensor.removesuffix("/scale")
            scale = self._constant(scale_tensor, scale_of(self.limits[name], self.half, number_format))
            zero = self._constant(f"{stem}/zero", np.zeros((), number_format.dtype))
            short, back = f"{name}/{number_format.name}", f"{stem}/quantised"
            self.new.append(helper.make_node("QuantizeLinear", [name, scale, zero], [short], name=short))
            self.new.append(helper.make_node("DequantizeLinear", [short, scale, zero], [back], name=back))
            self.made[key] = back
        return self.made[key]

    def weight(self, name: str, axis: int, number_format: NumberFormat) -> str:
        key = (name, axis, number_format.name)
        if key not in self.made:
            values = self.graph.constant(name)
            assert values is not None  # `quantizable` nodes have constant weights
            other_axes = tuple(i for i in range(values.ndim) if i != axis)
            scales = scale_of(np.abs(values).max(other_axes), self.half, number_format)
            shape = [-1 if i == axis else 1 for i in range(values.ndim)]
            stem = name if name not in self.replaced else f"{name}/{axis}/{number_format.name}"
            inputs = [
                self._constant(f"{stem}/{number_format.name}", number_format.rounded(values / scales.reshape(shape))),
                self._constant(f"{stem}/scale", scales),
                self._constant(f"{stem}/zero", np.zeros(len(scales), number_format.dtype)),
            ]
            back = f"{stem}/quantised"
            self.new.append(helper.make_node("DequantizeLinear", inputs, [back], name=back, axis=axis))
            self.made[key] = back
            self.replaced.add(name)
        return self.made[key]

    def _constant(self, name: str, value: np.ndarray) -> str:
        self.tensors.append(numpy_helper.from_array(np.asarray(value), name))
        return name
