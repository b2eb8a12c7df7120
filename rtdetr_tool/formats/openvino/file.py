"""OpenVINO files of detectors: a graph (.xml) with its weights (.bin next to it), and the description in the graph.

The description is JSON in the graph's runtime information, under `rtdetr_tool`; other programs ignore it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.files import parse_json, read_limited
from rtdetr_tool.formats.base import OpenRequest
from rtdetr_tool.formats.graph_file import GraphFile
from rtdetr_tool.formats.graph_interface import Shape, read_interface
from rtdetr_tool.formats.graph_tensors import names_to_run
from rtdetr_tool.formats.openvino.library import core, reason_of
from rtdetr_tool.formats.table import FORMATS

if TYPE_CHECKING:
    import openvino

LARGEST_GRAPH = 2**28  # bytes of the .xml; a detector's has about 1 MB
_KEY = ["rtdetr_tool", "description"]
_UNBOUNDED = frozenset({"Loop", "TensorIterator"})


@dataclass(frozen=True)
class OpenvinoFile(GraphFile):
    """A detector's OpenVINO file that has been read.

    Args:
        model: the graph with its weights.
    """

    model: openvino.Model


def weights_path(path: Path) -> Path:
    """The file with the weights of a graph."""
    return path.with_suffix(".bin")


def read(path: str | Path, request: OpenRequest | None = None) -> OpenvinoFile:
    """Read a detector's file.

    Raises:
        CheckpointError: it or its weights are missing, damaged or no detector.
        UserError: OpenVINO is not installed.
    """
    path = Path(path)
    _check(path)
    FORMATS["openvino"].to_run.require(str(path))
    import openvino

    try:
        model = core().read_model(path, weights_path(path))
    except RuntimeError as error:
        raise CheckpointError(
            f"OpenVINO {openvino.__version__} cannot read {path}; it or {weights_path(path).name} may be corrupted: "
            f"{reason_of(error)}"
        ) from error
    unbounded = sorted({node.get_type_name() for node in model.get_ops()} & _UNBOUNDED)
    if unbounded:
        raise CheckpointError(f"{path} is refused: it contains {', '.join(unbounded)}, which may never end.")
    description = description_of(model)
    interface = read_interface(_shapes(model.inputs), _shapes(model.outputs), description, path)
    tensors = {name: tensor for tensor in (*model.inputs, *model.outputs) for name in tensor.names}
    for name in (interface.layout.input, *names_to_run(interface)):
        if tensors[name].element_type.get_type_name() != "f32":
            kind = tensors[name].element_type.get_type_name()
            raise CheckpointError(f"{path}: {name} is of type {kind}; expected f32")
    return OpenvinoFile(path, description, interface, model)


def attach(model: openvino.Model, description: Mapping[str, Any]) -> None:
    """Write a description into a graph, in place."""
    model.set_rt_info(json.dumps(dict(description)), _KEY)


def description_of(model: openvino.Model) -> dict[str, Any]:
    """The reverse of `attach`; empty for files of other programs."""
    if not model.has_rt_info(_KEY):
        return {}
    try:
        description = parse_json(model.get_rt_info(_KEY).astype(str))
    except (ValueError, RuntimeError):
        return {}
    return description if isinstance(description, dict) else {}


def _check(path: Path) -> None:
    """CheckpointError if a graph of OpenVINO cannot be read here."""
    if not path.is_file():
        raise CheckpointError(f"There is no OpenVINO file at {path}.")
    try:
        start = read_limited(path, LARGEST_GRAPH)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    content = start.encode() if isinstance(start, str) else start
    if b"<net" not in content[:4096]:
        raise CheckpointError(f"{path} is not an OpenVINO file ({len(content)} bytes); expected XML with <net>.")
    if not weights_path(path).is_file():
        raise CheckpointError(f"{path} stores its weights in {weights_path(path).name}, which does not exist.")


def _shapes(tensors: Iterable[openvino.Output]) -> dict[str, Shape]:
    """Name -> shape of inputs or outputs."""
    return {
        tensor.any_name: tuple(axis.get_length() if axis.is_static else None for axis in tensor.partial_shape)
        for tensor in tensors
        if tensor.names
    }
