"""An editable ONNX graph: producer and readers of each tensor, element types, node names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from onnx import NodeProto, TensorProto, numpy_helper

from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.onnx.file import fits_one_file
from rtdetr_tool.formats.onnx.half_emulation import FLOAT, element_types, holds_graph

# Nodes with most of the work; TensorRT fuses their neighbors into them.
HEAVY = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", "Attention"})
# Nodes with an output type set by an attribute, which are not changed.
# fmt: off
FIXED = frozenset({
    "Cast", "CastLike", "Constant", "ConstantOfShape", "EyeLike", "RandomNormal", "RandomUniform",
    "DynamicQuantizeLinear",
})
# fmt: on


class Graph:
    """A copy of a model in which `Constant` nodes are initializers and every node has a unique name.

    Local functions are inlined. `types` has the element type of every tensor, as far as shape inference determines it.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        check_size(model)
        self.model = onnx.ModelProto()
        self.model.CopyFrom(onnx.inliner.inline_local_functions(model) if model.functions else model)
        self.graph = self.model.graph
        self.opset = opset_of(self.model)
        self._lift_constants()
        name_nodes(self.graph)
        self.types = element_types(self.model)
        self.initializers = {tensor.name: tensor for tensor in self.graph.initializer}
        self.inputs = [value.name for value in self.graph.input if value.name not in self.initializers]
        self.outputs = [value.name for value in self.graph.output]
        self.index()

    @property
    def nodes(self) -> list[NodeProto]:
        return list(self.graph.node)

    def index(self) -> None:
        """Index producer and readers of each tensor; call it again after changing nodes."""
        self.by_name = {node.name: node for node in self.graph.node}
        self.producer: dict[str, NodeProto] = {out: node for node in self.graph.node for out in node.output if out}
        self.readers: dict[str, list[tuple[NodeProto, int]]] = defaultdict(list)
        for node in self.graph.node:
            for slot, name in enumerate(node.input):
                if name:
                    self.readers[name].append((node, slot))

    def is_float(self, name: str) -> bool:
        return bool(name) and self.types.get(name) == FLOAT

    def constant(self, name: str) -> np.ndarray | None:
        tensor = self.initializers.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def sources(self, node: NodeProto) -> list[NodeProto]:
        """The nodes that produce this node's inputs."""
        return [self.producer[name] for name in node.input if name in self.producer]

    def targets(self, node: NodeProto) -> list[NodeProto]:
        """The nodes that read this node's outputs."""
        return [reader for name in node.output for reader, _ in self.readers.get(name, ())]

    def half_slots(self, node: NodeProto) -> tuple[list[int], list[int]]:
        """The float32 inputs and outputs of a node that are float16 if it runs in FP16; ([], []) if it cannot."""
        if node.op_type in FIXED or holds_graph(node) or not onnx.defs.has(node.op_type, node.domain):
            return [], []
        try:
            schema = onnx.defs.get_schema(node.op_type, opset_of(self.model, node.domain), node.domain)
        except onnx.defs.SchemaError:
            return [], []
        allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}

        def takes_half(formal: Sequence[onnx.defs.OpSchema.FormalParameter], slot: int) -> bool:
            declared = formal[min(slot, len(formal) - 1)].type_str
            return "tensor(float16)" in allowed.get(declared, [declared])

        inputs = [i for i, name in enumerate(node.input) if self.is_float(name) and takes_half(schema.inputs, i)]
        outputs = [i for i, name in enumerate(node.output) if self.is_float(name) and takes_half(schema.outputs, i)]
        return inputs, outputs

    def _lift_constants(self) -> None:
        for node in [n for n in self.graph.node if n.op_type == "Constant" and n.domain in ("", "ai.onnx")]:
            value = next((a for a in node.attribute if a.name == "value"), None)
            if value is None:
                array = _scalar_constant(node)
                if array is None:
                    continue
                tensor = numpy_helper.from_array(array, node.output[0])
            else:
                tensor = TensorProto()
                tensor.CopyFrom(value.t)
                tensor.name = node.output[0]
            self.graph.initializer.append(tensor)
            self.graph.node.remove(node)


def _scalar_constant(node: NodeProto) -> np.ndarray | None:
    for attribute in node.attribute:
        kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
        if attribute.name in kinds:
            return np.array(onnx.helper.get_attribute_value(attribute), kinds[attribute.name])
    return None


def check_size(model: onnx.ModelProto) -> None:
    if not fits_one_file(model):
        raise UserError(
            "The ONNX graph has more than 2 GiB of weights, the limit for FP16 and INT8 graphs. "
            "Set gen_trt_engine.tensorrt.data_type to FP32"
        )


def opset_of(model: onnx.ModelProto, domain: str = "") -> int:
    """Version of an operator set that the model imports; 1 if it does not import it."""
    same = ("", "ai.onnx") if domain in ("", "ai.onnx") else (domain,)
    return max((entry.version for entry in model.opset_import if entry.domain in same), default=1)


def name_nodes(graph: onnx.GraphProto) -> None:
    """Name nodes without a unique name `<operator>_<position>`."""
    taken = {node.name for node in graph.node}
    seen: set[str] = set()
    for position, node in enumerate(graph.node):
        if not node.name or node.name in seen:
            name = f"{node.op_type}_{position}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
        seen.add(node.name)


def captured(node: NodeProto) -> set[str]:
    """Outer tensors that the subgraphs of a node read."""
    names: set[str] = set()
    for attribute in node.attribute:
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            made = {v.name for v in inner.input} | {t.name for t in inner.initializer}
            for child in inner.node:
                names |= {name for name in child.input if name and name not in made} | (captured(child) - made)
                made |= set(child.output)
            names |= {v.name for v in inner.output} - made
    return names


def is_bias_add(graph: Graph, node: NodeProto) -> bool:
    """Add of a constant vector right after a heavy node: part of a linear layer."""
    if node.op_type != "Add":
        return False
    constant = [name in graph.initializers for name in node.input]
    if sum(constant) != 1:
        return False
    maker = graph.producer.get(node.input[constant.index(False)])
    return maker is not None and maker.op_type in HEAVY


def backwards(graph: Graph, tensors: Iterable[str], stop: Callable[[NodeProto], bool]) -> list[NodeProto]:
    """Upstream nodes of some tensors with float outputs, up to and without those for which `stop` is true."""
    visited: dict[str, NodeProto] = {}
    stack = [name for name in tensors if name]
    while stack:
        node = graph.producer.get(stack.pop())
        if node is None or node.name in visited or not any(graph.is_float(name) for name in node.output) or stop(node):
            continue
        visited[node.name] = node
        stack.extend(name for name in node.input if graph.is_float(name))
    return list(visited.values())


def at_opset(model: onnx.ModelProto, needed: int, what: str) -> tuple[Graph, list[str]]:
    """The graph in operator set `needed` or later, which `what` requires, and a note if it was converted.

    Raises:
        UserError: onnx cannot convert it.
    """
    opset = opset_of(model)
    graph = Graph(model)
    if opset >= needed:
        return graph, []
    try:
        raised = onnx.version_converter.convert_version(graph.model, needed)
    except Exception as error:  # the converter raises RuntimeError and its own C++ exceptions
        raise UserError(
            f"{what} requires ONNX operator set {needed}, but the graph has {opset} and cannot be "
            f"converted ({error}). Export it with export.opset_version={needed}"
        ) from error
    raised.ir_version = max(raised.ir_version, onnx.helper.find_min_ir_version_for(list(raised.opset_import)))
    return Graph(raised), [f"converted operator set {opset} to {needed}, which {what} requires"]
