"""ONNX files of detectors: reading and writing them, their description and their interface.

Protobuf is limited to 2 GiB: the weights of larger models are stored next to the graph, in `<name>.onnx.data`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.files import remove_unfinished, replacing_with_companion
from rtdetr_tool.formats.base import OpenRequest
from rtdetr_tool.formats.description import from_texts, to_texts
from rtdetr_tool.formats.graph_file import GraphFile
from rtdetr_tool.formats.graph_interface import GraphInterface, Shape, read_interface
from rtdetr_tool.formats.onnx.limits import check_cost, check_external_data
from rtdetr_tool.messages import first_line

LARGEST_FILE = 2**31 - 2**24  # bytes of weights that fit into one file, with room for the graph
LARGEST_MODEL = 2**31  # bytes of a file; protobuf has this limit
WEIGHTS_SUFFIX = ".data"
SMALLEST_EXTERNAL = 1024  # bytes of a tensor that goes into the weights file


@dataclass(frozen=True)
class OnnxFile(GraphFile):
    """A detector's ONNX file, parsed."""

    model: onnx.ModelProto


def read(path: str | Path, request: OpenRequest | None = None) -> OnnxFile:
    """Read and check a detector's file, without weights in a second file.

    Raises:
        CheckpointError: it is missing, corrupted or not a detector.
    """
    return parsed(path, read_onnx(path, weights=False))


def parsed(path: str | Path, model: onnx.ModelProto) -> OnnxFile:
    """An `OnnxFile` from a detector's graph in memory."""
    return OnnxFile(Path(path), description_of(model), interface_of(model, path), model)


def read_onnx(path: str | Path, weights: bool = True) -> onnx.ModelProto:
    """Read and check a file; with `weights` False those in a second file are not loaded.

    Raises:
        CheckpointError: it is missing, unreadable, not an ONNX file, or corrupted.
    """
    path = Path(path)
    if not path.is_file():
        neighbors = sorted(p.name for p in path.parent.glob("*.onnx"))[:5] if path.parent.is_dir() else []
        near = f" {path.parent} contains {', '.join(neighbors)}." if neighbors else ""
        raise CheckpointError(f"There is no ONNX file at {path}.{near}")
    try:
        if path.stat().st_size > LARGEST_MODEL:
            raise CheckpointError(f"{path} is larger than 2 GiB, the limit of ONNX files.")
        model = onnx.load(path, load_external_data=False)
        check_external_data(model, path)
        check_cost(model, path)
        if weights:
            onnx.load_external_data_for_model(model, str(path.parent))
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} stores its weights in another file, which does not exist: {error}") from error
    except Exception as error:  # protobuf raises its own DecodeError, others come from external data
        size = path.stat().st_size
        raise CheckpointError(f"{path} ({size} bytes) is not an ONNX file, or it is corrupted or truncated.") from error
    if not model.graph.node or not model.opset_import:
        raise CheckpointError(f"{path} is not an ONNX file with a graph: it has no nodes or no operator set.")
    return model


def load_weights(file: OnnxFile) -> onnx.ModelProto:
    """The graph with the weights of its second file, if it has one; CheckpointError if that cannot be read."""
    try:
        onnx.load_external_data_for_model(file.model, str(file.path.parent))
    except Exception as error:  # of protobuf, onnx and the operating system
        reason = first_line(error)
        raise CheckpointError(
            f"{file.path} stores its weights in another file, which cannot be read: {reason}"
        ) from error
    return file.model


def fits_one_file(model: onnx.ModelProto) -> bool:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) <= LARGEST_FILE


@contextmanager
def replacing_onnx(path: str | Path, model: onnx.ModelProto) -> Iterator[Path]:
    """Yield a temporary file with the model for checks; it (and its weights file, if any) replaces `path` afterwards.

    If the weights are written to a separate file, they are removed from `model`.
    """
    remove_unfinished(path)
    with replacing_with_companion(path, _weights_path) as temporary:
        if fits_one_file(model):
            onnx.save(model, temporary)
        else:
            name = temporary.name + WEIGHTS_SUFFIX
            onnx.save(model, temporary, save_as_external_data=True, location=name, size_threshold=SMALLEST_EXTERNAL)
        yield temporary


def weights_file_of(path: Path) -> Path | None:
    """The file with the weights of an ONNX file, if it has one."""
    file = _weights_path(path)
    return file if file.exists() else None


def _weights_path(path: Path) -> Path:
    return path.with_name(path.name + WEIGHTS_SUFFIX)


def interface_of(model: onnx.ModelProto, source: str | Path) -> GraphInterface:
    """Inputs and outputs of a detector's graph.

    Raises:
        CheckpointError: it is not a detector, or its input is not float32.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    interface = read_interface(
        {value.name: _shape(value) for value in inputs},
        {value.name: _shape(value) for value in model.graph.output},
        description_of(model),
        source,
    )
    kind = inputs[0].type.tensor_type.elem_type
    if kind != onnx.TensorProto.FLOAT:
        name = onnx.TensorProto.DataType.Name(kind)
        raise CheckpointError(f"{source}: input {inputs[0].name} is of type {name}; expected FLOAT")
    return replace(interface, opset=opset)


def attach(model: onnx.ModelProto, description: Mapping[str, Any]) -> None:
    """Store a description in the metadata of a model, in place; strings unchanged, everything else as JSON."""
    known = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**known, **to_texts(description)})


def description_of(model: onnx.ModelProto) -> dict[str, Any]:
    """The inverse of `attach`; metadata of other programs remain strings."""
    return from_texts({entry.key: entry.value for entry in model.metadata_props})


def _shape(value: onnx.ValueInfoProto) -> Shape:
    return tuple(
        axis.dim_value if axis.HasField("dim_value") and axis.dim_value > 0 else None
        for axis in value.type.tensor_type.shape.dim
    )
