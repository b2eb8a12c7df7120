"""An FP32 graph in which FP16 rounding can be switched on per group of nodes.

It measures the cost of each group in FP16 with one session instead of one per group.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from rtdetr_tool.formats.onnx.half_emulation import FLOAT, HALF, MOVING
from rtdetr_tool.formats.precision.graph import Graph


class GatedGraph:
    """The model with one boolean input per group; `feed` gives those inputs their values.

    Every node of an open group computes as in FP16: inputs, weights and results are rounded. Nodes that only
    move values do not round.
    """

    def __init__(self, graph: Graph, groups: Mapping[str, set[str]]) -> None:
        self.groups = list(groups)
        self._graph = graph
        self._group_of = {
            name: index
            for index, members in enumerate(groups.values())
            for name in members
            if graph.by_name[name].op_type not in MOVING
        }
        self._made_by: dict[str, int] = {}
        self._rounded: dict[tuple[str, int], str] = {}
        self._nodes: list[NodeProto] = []
        for node in graph.nodes:
            self._add(node)
        self.model = onnx.ModelProto()
        self.model.CopyFrom(graph.model)
        del self.model.graph.node[:], self.model.graph.value_info[:]
        self.model.graph.node.extend(self._nodes)
        gates = [helper.make_tensor_value_info(_gate(i), TensorProto.BOOL, []) for i in range(len(self.groups))]
        self.model.graph.input.extend(gates)

    def feed(self, *open_groups: str) -> dict[str, np.ndarray]:
        """Values of the gates if these groups run in FP16."""
        return {_gate(index): np.array(name in open_groups) for index, name in enumerate(self.groups)}

    def _add(self, original: NodeProto) -> None:
        node = NodeProto()
        node.CopyFrom(original)
        group = self._group_of.get(node.name)
        if group is None:
            self._nodes.append(node)
            return
        inputs, outputs = self._graph.half_slots(original)
        for slot in inputs:
            if self._made_by.get(node.input[slot]) != group:
                node.input[slot] = self._round(node.input[slot], group)
        exact = {slot: node.output[slot] + "/exact" for slot in outputs}
        for slot, name in exact.items():
            node.output[slot] = name
        self._nodes.append(node)
        for slot, name in exact.items():
            self._made_by[original.output[slot]] = group
            self._choose(name, original.output[slot], group)

    def _round(self, name: str, group: int) -> str:
        """The tensor as read by this group."""
        if (name, group) not in self._rounded:
            self._rounded[name, group] = f"{name}/read {group}"
            self._choose(name, self._rounded[name, group], group)
        return self._rounded[name, group]

    def _choose(self, exact: str, output: str, group: int) -> None:
        short, rounded = f"{output}/half", f"{output}/rounded"
        self._nodes.append(helper.make_node("Cast", [exact], [short], to=HALF))
        self._nodes.append(helper.make_node("Cast", [short], [rounded], to=FLOAT))
        self._nodes.append(helper.make_node("Where", [_gate(group), rounded, exact], [output]))


def _gate(index: int) -> str:
    return f"gate {index}"
