"""Limits on the content of an ONNX file: no loops, no huge constants, no weights outside of its folder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx

from rtdetr_tool.errors import CheckpointError

LARGEST_METADATA = 16 << 20  # characters
MOST_NUMBERS = 2**33  # of one tensor
LOOPS = ("Loop", "Scan", "SequenceMap")


def check_cost(model: onnx.ModelProto, path: Path) -> None:
    """CheckpointError for loops, which may never end, and constants that need far more memory than the file."""
    for node in _nodes(model):
        if node.op_type in LOOPS:
            raise CheckpointError(
                f"{path} is refused: node {node.name!r} is a {node.op_type}, which may never end. Detectors do not "
                "need loops; export the model without them."
            )
    for tensor in _tensors(model):
        numbers = math.prod(tensor.dims)
        if numbers > MOST_NUMBERS:
            raise CheckpointError(f"{path} is refused: tensor {tensor.name!r} claims {numbers} numbers.")
    for graph in _graphs(model):
        for sparse in graph.sparse_initializer:
            if math.prod(sparse.dims) > MOST_NUMBERS // 16:
                raise CheckpointError(f"{path} is refused: a sparse tensor claims {math.prod(sparse.dims)} numbers.")
    metadata = sum(len(entry.value) for entry in model.metadata_props)
    if metadata > LARGEST_METADATA:
        raise CheckpointError(f"{path} is refused: its metadata have {metadata} characters.")


def check_external_data(model: onnx.ModelProto, path: Path) -> None:
    """CheckpointError for weights files outside of the graph's folder; a graph could name any file of this machine."""
    for tensor in _tensors(model):
        for entry in tensor.external_data:
            location = PurePosixPath(entry.value.replace("\\", "/"))
            outside = location.is_absolute() or ".." in location.parts or PureWindowsPath(entry.value).drive
            if entry.key == "location" and outside:
                raise CheckpointError(
                    f"{path} is refused: the weights {tensor.name!r} are in the file {entry.value!r}; expected a "
                    "file in the folder of the graph or below."
                )


def _attributes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.AttributeProto]:
    return (attribute for node in nodes for attribute in node.attribute)


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The graph of a model, and all subgraphs in attributes of nodes and in the model's functions."""
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
    """Every tensor of a model, including those in attributes, subgraphs and functions."""
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
