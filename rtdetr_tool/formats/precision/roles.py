"""The roles of nodes in a detection transformer, derived from the graph's structure.

Names are not used, so graphs of other exporters work too.

coordinates     box refinement and sampling positions: nodes between the last linear layer and a box or a grid
sampling        GridSample, or gathering at computed positions, and the weighted sum of the samples
selection       class scores that select the tokens for queries, up to TopK
index           everything that becomes an index, a size or a condition, and arithmetic with whole numbers
normalisation   layer norms, as one operator or decomposed
softmax         attention weights
position        sine and cosine encodings
"""

from __future__ import annotations

from onnx import NodeProto

from rtdetr_tool.catalog import LAYOUTS
from rtdetr_tool.formats.precision.graph import HEAVY, Graph, backwards, is_bias_add
from rtdetr_tool.formats.precision.indices import gathers_by_position, index_nodes

# fmt: off
NORMS = frozenset({
    "LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization",
    "MeanVarianceNormalization", "LpNormalization",
})
# fmt: on
SOFTMAXES = frozenset({"Softmax", "LogSoftmax", "Exp", "ReduceLogSumExp"})
WAVES = frozenset({"Sin", "Cos"})
ROLES = ("coordinates", "sampling", "selection", "index", "normalisation", "softmax", "position")
_STATISTICS = frozenset({"Add", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Pow", "Mul", "Sub", "Sqrt", "Max"})
# fmt: off
_WEIGHTED_SUM = frozenset({
    "Mul", "ReduceSum", "Add", "Sum", "Concat", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten",
})
# fmt: on


def find_roles(graph: Graph) -> dict[str, str]:
    """Role of each node that has one, by node name. A node with several roles has the first of `ROLES`."""
    roles: dict[str, str] = {}
    searches = (_coordinates, _sampling, _selection, _indices, _norms, _softmaxes, _positions)
    for role, search in zip(ROLES, searches, strict=True):
        for node in search(graph):
            roles.setdefault(node.name, role)
    return roles


def _coordinates(graph: Graph) -> list[NodeProto]:
    named = {layout.outputs["boxes"] for layout in LAYOUTS.values()}
    boxes = [name for name in graph.outputs if name in named or "box" in name.lower()]
    grids = [node.input[1] for node in graph.nodes if node.op_type == "GridSample"]
    return backwards(graph, [*boxes, *grids], lambda node: _ends_a_layer(graph, node))


def _sampling(graph: Graph) -> list[NodeProto]:
    samplers = [node for node in graph.nodes if node.op_type == "GridSample"] + gathers_by_position(graph)
    reached, stack = {node.name: node for node in samplers}, list(samplers)
    while stack:
        for target in graph.targets(stack.pop()):
            if target.op_type in _WEIGHTED_SUM and target.name not in reached:
                reached[target.name] = target
                stack.append(target)
    return list(reached.values())


def _selection(graph: Graph) -> list[NodeProto]:
    scores = [node.input[0] for node in graph.nodes if node.op_type == "TopK"]
    nodes = backwards(graph, scores, lambda node: node.op_type in HEAVY or _ends_elsewhere(node))
    makers = [maker for node in nodes for maker in graph.sources(node)]
    makers += [graph.producer[name] for name in scores if name in graph.producer]
    return nodes + [maker for maker in makers if maker.op_type in HEAVY]


def _indices(graph: Graph) -> list[NodeProto]:
    return index_nodes(graph, lambda node: _ends_a_layer(graph, node))


def _norms(graph: Graph) -> list[NodeProto]:
    """Single operators, and the nodes around each square root of a mean: statistics before, division, scale after."""
    nodes = [node for node in graph.nodes if node.op_type in NORMS]
    for root in (node for node in graph.nodes if node.op_type in ("Sqrt", "ReduceL2")):
        before = backwards(graph, list(root.input), lambda node: node.op_type not in _STATISTICS)
        if root.op_type == "Sqrt" and not any(n.op_type.startswith("Reduce") for n in before):
            continue
        nodes += [root, *before, *(n for n in graph.targets(root) if n.op_type in ("Div", "Reciprocal", "Mul"))]
    return nodes


def _softmaxes(graph: Graph) -> list[NodeProto]:
    return [node for node in graph.nodes if node.op_type in SOFTMAXES]


def _positions(graph: Graph) -> list[NodeProto]:
    waves = [node for node in graph.nodes if node.op_type in WAVES]
    return waves + backwards(graph, [w.input[0] for w in waves], lambda node: _ends_a_layer(graph, node))


def _ends_a_layer(graph: Graph, node: NodeProto) -> bool:
    return node.op_type in HEAVY or is_bias_add(graph, node) or _ends_elsewhere(node)


def _ends_elsewhere(node: NodeProto) -> bool:
    return node.op_type in NORMS or node.op_type in SOFTMAXES or node.op_type == "GridSample"
