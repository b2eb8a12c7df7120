"""Find nodes that compute indices and conditions in floating point.

FP16 represents all integers only up to 2048. Larger indices refer to another element, or to one that does not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from onnx import NodeProto, TensorProto

from rtdetr_tool.formats.onnx.half_emulation import MOVING
from rtdetr_tool.formats.precision.graph import HEAVY, Graph, backwards

Stop = Callable[[NodeProto], bool]

# fmt: off
INTEGERS = frozenset({
    TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64,
    TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
})
# Integer outputs that do not depend on values, are values in other units, or have a separate role (TopK).
_NO_DECISION = frozenset({"Shape", "Size", "QuantizeLinear", "DynamicQuantizeLinear", "TopK"})
# Arithmetic whose result is an integer for integer inputs.
_CLOSED = frozenset({"Add", "Sub", "Mul", "Sum", "Mod", "Sign", "ReduceSum", "CumSum"}) | MOVING
# fmt: on
_ROUNDING = frozenset({"Floor", "Ceil", "Round"})
# Floating-point inputs that are positions, sizes or counts themselves.
_POSITIONS = {"OneHot": (0, 1), "Range": (0, 1, 2), "Resize": (1, 2), "Upsample": (1,), "RoiAlign": (1,)}
_GATHERS = frozenset({"Gather", "GatherElements", "GatherND"})


def index_nodes(graph: Graph, stop: Stop) -> list[NodeProto]:
    """Every node upstream of an index, a size or a condition, and every node that computes with whole numbers.

    Traces back from the nodes that convert floating point to integers or booleans up to the layers for which `stop` is
    true, and forward from whole numbers as long as they remain whole. Nodes that read such a tensor are included: the
    fraction `x - floor(x)` needs both in full precision.
    """
    deciding = [node for node in graph.nodes if decides(graph, node)]
    positions = [
        node.input[slot]
        for node in graph.nodes
        for slot in _POSITIONS.get(node.op_type, ())
        if slot < len(node.input) and graph.is_float(node.input[slot])
    ]
    read = [name for node in deciding for name in node.input if graph.is_float(name)]
    whole = _whole_numbers(graph)
    roundings = [name for node in graph.nodes if node.op_type in _ROUNDING for name in node.input]
    before = backwards(graph, [*read, *positions, *roundings], stop)
    computing = {node.name: node for node in (*before, *whole.values())}
    readers = [
        reader
        for node in computing.values()
        for reader in graph.targets(node)
        if reader.op_type not in HEAVY and not stop(reader)
    ]
    nodes = computing | {node.name: node for node in (*deciding, *readers)}
    return [node for node in graph.nodes if node.name in nodes]


def decides(graph: Graph, node: NodeProto) -> bool:
    """Whether a node converts floating-point values to integers or booleans that are read."""
    if node.op_type in _NO_DECISION or not any(graph.is_float(name) for name in node.input):
        return False
    made = [name for name in node.output if graph.types.get(name) in INTEGERS | {TensorProto.BOOL}]
    return any(graph.readers.get(name) or name in graph.outputs for name in made)


def gathers_by_position(graph: Graph) -> list[NodeProto]:
    """Nodes that gather elements of a computed tensor at computed positions: sampling without `GridSample`."""
    return [
        node
        for node in graph.nodes
        if node.op_type in _GATHERS and graph.is_float(node.input[0]) and node.input[0] not in graph.initializers
        if _comes_from_floats(graph, node.input[1])
    ]  # fmt: skip


def _comes_from_floats(graph: Graph, index: str) -> bool:
    """Whether an index tensor is cast from floating point, unlike those of `TopK` and similar nodes."""
    seen, stack = set(), [index]
    while stack:
        node = graph.producer.get(stack.pop())
        if node is None or node.name in seen or node.op_type in _NO_DECISION:
            continue
        seen.add(node.name)
        if node.op_type == "Cast" and graph.is_float(node.input[0]):
            return True
        if not any(graph.is_float(name) for name in node.input):
            stack.extend(node.input)
    return False


def _whole_numbers(graph: Graph) -> dict[str, NodeProto]:
    """Nodes with floating-point outputs that are whole numbers by construction, by name."""
    whole: dict[str, NodeProto] = {}
    tensors: set[str] = set()
    for node in graph.nodes:
        if not any(graph.is_float(name) for name in node.output):
            continue
        if _makes_whole(graph, node, tensors):
            whole[node.name] = node
            tensors |= {name for name in node.output if graph.is_float(name)}
    return whole


def _makes_whole(graph: Graph, node: NodeProto, tensors: Collection[str]) -> bool:
    if node.op_type in _ROUNDING:
        return True
    if node.op_type == "Cast":
        return graph.types.get(node.input[0]) in INTEGERS
    floats = [name for name in node.input if graph.is_float(name)]
    if node.op_type not in _CLOSED or not any(name in tensors for name in floats):
        return False
    return all(name in tensors or _is_whole_constant(graph, name) for name in floats)


def _is_whole_constant(graph: Graph, name: str) -> bool:
    value = graph.constant(name)
    return value is not None and bool((value == value.round()).all())
