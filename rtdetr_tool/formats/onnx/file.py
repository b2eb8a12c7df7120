"""ONNX files of detectors: reading them, what they say of themselves (`description`), what goes in and comes out.

Protobuf ends at 2 GiB: the weights of larger models lie beside the graph, in `<name>.onnx.data`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import onnx

from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.files import parse_json, remove_unfinished, replacing_with_companion
from rtdetr_tool.formats.graph_interface import GraphInterface, read_interface

LARGEST_FILE = 2**31 - 2**24  # bytes of weights that fit into one file, with room for the graph
LARGEST_MODEL = 2**31  # bytes of a file; protobuf has this limit
LARGEST_METADATA = 16 << 20  # characters
MOST_NUMBERS = 2**33  # of one tensor
LOOPS = ("Loop", "Scan", "SequenceMap")
WEIGHTS_SUFFIX = ".data"
SMALLEST_APART = 1024  # bytes of a tensor that is worth a place in the other file


def read_onnx(path: str | Path, weights: bool = True) -> onnx.ModelProto:
    """Read and check a file; `weights` False leaves those that lie beside it where they are.

    Raises:
        CheckpointError: it is missing, unreadable, no ONNX file, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        found = sorted(p.name for p in path.parent.glob("*.onnx"))[:5] if path.parent.is_dir() else []
        near = f" {path.parent} holds: {', '.join(found)}." if found else ""
        raise CheckpointError(f"There is no ONNX file at {path}.{near}")
    try:
        if path.stat().st_size > LARGEST_MODEL:
            raise CheckpointError(f"{path} has more than 2 GiB, which no ONNX file can have.")
        model = onnx.load(path, load_external_data=False)
        _check_places(model, path)
        _check_cost(model, path)
        if weights:
            onnx.load_external_data_for_model(model, str(path.parent))
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} keeps its weights in another file, which is not there: {error}") from error
    except Exception as error:  # protobuf raises its own DecodeError, others come from external data
        size = path.stat().st_size
        raise CheckpointError(f"{path} ({size} bytes) is not an ONNX file, or it is damaged or cut short.") from error
    if not model.graph.node or not model.opset_import:
        raise CheckpointError(f"{path} is not an ONNX file with a graph: it holds no nodes or no operator set.")
    return model


def _check_cost(model: onnx.ModelProto, path: Path) -> None:
    """CheckpointError for what may never end or takes far more memory than the file: loops, and huge constants."""
    for node in _nodes(model):
        if node.op_type in LOOPS:
            raise CheckpointError(
                f"{path} was refused: node {node.name!r} is a {node.op_type}, which may run for any time. Detectors "
                "need no loops; export the model without them."
            )
    for tensor in _tensors(model):
        numbers = math.prod(tensor.dims)
        if numbers > MOST_NUMBERS:
            raise CheckpointError(f"{path} was refused: tensor {tensor.name!r} claims {numbers} numbers.")
    for graph in _graphs(model):
        for sparse in graph.sparse_initializer:
            if math.prod(sparse.dims) > MOST_NUMBERS // 16:
                raise CheckpointError(f"{path} was refused: a sparse tensor claims {math.prod(sparse.dims)} numbers.")
    metadata = sum(len(entry.value) for entry in model.metadata_props)
    if metadata > LARGEST_METADATA:
        raise CheckpointError(f"{path} was refused: its metadata have {metadata} characters.")


def _check_places(model: onnx.ModelProto, path: Path) -> None:
    """Weights apart must lie in the folder of the graph or below: a graph could name any file of this machine."""
    for tensor in _tensors(model):
        for entry in tensor.external_data:
            place = PurePosixPath(entry.value.replace("\\", "/"))
            outside = place.is_absolute() or ".." in place.parts or PureWindowsPath(entry.value).drive
            if entry.key == "location" and outside:
                raise CheckpointError(
                    f"{path} was refused: it says that the weights {tensor.name!r} lie in {entry.value!r}. The weights "
                    "of a graph must be in its folder or below."
                )


def _attributes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.AttributeProto]:
    return (attribute for node in nodes for attribute in node.attribute)


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The graph of a model, and all in attributes of nodes and of the model's own functions."""
    functions = [entry for function in model.functions for entry in (*_attributes(function.node), *_defaults(function))]
    waiting = [model.graph, *(graph for entry in functions for graph in _graphs_of(entry))]
    for training in model.training_info:
        waiting += [training.initialization, training.algorithm]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += [inner for attribute in _attributes(graph.node) for inner in _graphs_of(attribute)]


def _graphs_of(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    return [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]


def _defaults(function: onnx.FunctionProto) -> Iterable[onnx.AttributeProto]:
    return getattr(function, "attribute_proto", ())


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for function in model.functions:
        yield from function.node
    for graph in _graphs(model):
        yield from graph.node


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model, those in attributes, in graphs within graphs and in functions included."""
    for graph in _graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    defaults = (entry for function in model.functions for entry in _defaults(function))
    for attribute in (*_attributes(_nodes(model)), *defaults):
        yield from (*attribute.tensors, *([attribute.t] if attribute.HasField("t") else []))
        single = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        for entry in (*attribute.sparse_tensors, *single):
            yield from (entry.values, entry.indices)


def fits_one_file(model: onnx.ModelProto) -> bool:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) <= LARGEST_FILE


@contextmanager
def replacing_onnx(path: str | Path, model: onnx.ModelProto) -> Iterator[Path]:
    """Write a model to a temporary file, to be looked at; it (and its weights, if apart) replaces `path` when that ends
    well.

    A model with weights apart has lost them afterwards.
    """
    remove_unfinished(path)
    with replacing_with_companion(path, WEIGHTS_SUFFIX) as temporary:
        apart = {"location": temporary.name + WEIGHTS_SUFFIX, "size_threshold": SMALLEST_APART}
        onnx.save(model, temporary, **({} if fits_one_file(model) else {"save_as_external_data": True, **apart}))
        yield temporary


def weights_beside(path: Path) -> Path | None:
    """The file with the weights of an ONNX file, where it has one."""
    file = path.with_name(path.name + WEIGHTS_SUFFIX)
    return file if file.exists() else None


def bytes_of(path: Path) -> int:
    """What an ONNX file takes on the disk, weights beside it included."""
    beside = weights_beside(path)
    return path.stat().st_size + (beside.stat().st_size if beside else 0)


def interface_of(model: onnx.ModelProto, source: str | Path) -> GraphInterface:
    """What a detector's graph takes and gives.

    Raises:
        CheckpointError: it is no detector's, or its input is not float32.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    found = read_interface(
        {value.name: _shape(value) for value in inputs},
        {value.name: _shape(value) for value in model.graph.output},
        description_of(model),
        source,
    )
    kind = inputs[0].type.tensor_type.elem_type
    if kind != onnx.TensorProto.FLOAT:
        name = onnx.TensorProto.DataType.Name(kind)
        raise CheckpointError(f"{source}: input {inputs[0].name} is of type {name}; FLOAT is expected")
    return replace(found, opset=opset)


def attach(model: onnx.ModelProto, description: Mapping[str, Any]) -> None:
    """Write a description into the metadata of a model, in place; texts as they are, all else as JSON."""
    known = {entry.key: entry.value for entry in model.metadata_props}
    known |= {key: value if isinstance(value, str) else json.dumps(value) for key, value in description.items()}
    onnx.helper.set_model_props(model, known)


def description_of(model: onnx.ModelProto) -> dict[str, Any]:
    """The reverse of `attach`; what others wrote stays text."""
    description: dict[str, Any] = {}
    for entry in model.metadata_props:
        try:
            value = parse_json(entry.value) if entry.key not in ("notes", "rtdetr_version") else entry.value
        except ValueError:
            value = entry.value
        description[entry.key] = value
    return description


def _shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    return tuple(
        axis.dim_value if axis.HasField("dim_value") and axis.dim_value > 0 else None
        for axis in value.type.tensor_type.shape.dim
    )
