"""ExecuTorch programs of detectors: the network as `forward`, and its description as the result of `rtdetr_tool`.

The description is JSON: {"inputs": [name], "outputs": [name, ...], "description": {...}}. A program has no names
itself.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.files import open_regular, parse_json
from rtdetr_tool.formats.base import OpenRequest
from rtdetr_tool.formats.executorch.library import library_version, load_runtime
from rtdetr_tool.formats.graph_file import GraphFile
from rtdetr_tool.formats.graph_interface import Shape, read_interface
from rtdetr_tool.formats.onnx.export import quiet
from rtdetr_tool.messages import first_line

NETWORK, DESCRIPTION = "forward", "rtdetr_tool"  # methods
_MARK = slice(4, 6), b"ET"  # of the file format, after the offset of the program; then its version
_HEADER = slice(8, 12), b"eh00"
_SIZES = struct.Struct("<IQQQ")  # length of the header, size of the program, offset and size of its segments
_FLOAT32 = 6  # ScalarType::Float


@dataclass(frozen=True)
class ExecutorchFile(GraphFile):
    """A detector's program, loaded into the runtime.

    Args:
        method: the network; called with a list of tensors.
        version: of the runtime.
    """

    method: Any
    version: str


def read(path: str | Path, request: OpenRequest | None = None) -> ExecutorchFile:
    """Read a detector's program and load it into the runtime.

    Raises:
        CheckpointError: it is missing, corrupted or no detector.
        UserError: the runtime is missing or does not work with this PyTorch.
    """
    path = Path(path)
    _check(path)
    method, stored = load_network(path)
    meta = method.metadata
    inputs = [meta.input_tensor_meta(index) for index in range(meta.num_inputs())]
    outputs = [meta.output_tensor_meta(index) for index in range(meta.num_outputs())]
    names = {
        kind: _names(stored.get(kind), kind, infos, path) for kind, infos in (("inputs", inputs), ("outputs", outputs))
    }
    description = stored.get("description")
    description = description if isinstance(description, dict) else {}
    interface = read_interface(_shapes(names["inputs"], inputs), _shapes(names["outputs"], outputs), description, path)
    for name, info in zip((*names["inputs"], *names["outputs"]), (*inputs, *outputs), strict=True):
        if info.dtype() != _FLOAT32:
            raise CheckpointError(f"{path}: {name} is of type {info.dtype()} (ScalarType); expected float32")
    return ExecutorchFile(path, description, interface, method, library_version())


def load_network(path: Path) -> tuple[Any, Mapping[str, Any]]:
    """The method `forward` of a program, and what its method `rtdetr_tool` returns (empty for other programs)."""
    runtime = load_runtime(path)
    try:
        with quiet(False):
            program = runtime.load_program(path)
            methods = program.method_names
            if NETWORK not in methods:
                raise CheckpointError(f"{path} has the methods {sorted(methods)}; expected {NETWORK}.")
            stored = parse_json(program.load_method(DESCRIPTION).execute([])[0]) if DESCRIPTION in methods else {}
            return program.load_method(NETWORK), stored if isinstance(stored, dict) else {}
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise CheckpointError(
            f"ExecuTorch {library_version()} cannot run {path}; it may be corrupted, or built for a backend that this "
            f"runtime does not have: {first_line(error)}"
        ) from error


def _check(path: Path) -> None:
    """CheckpointError if a file is missing, unreadable, of another format or truncated."""
    try:
        with open_regular(path) as file:
            start = file.read(64)
            size = path.stat().st_size
    except FileNotFoundError:
        raise CheckpointError(f"There is no ExecuTorch program at {path}.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    if start[_MARK[0]] != _MARK[1]:
        raise CheckpointError(f"{path} is not an ExecuTorch program ({size} bytes, starts with {start[:8]!r}).")
    if start[_HEADER[0]] != _HEADER[1] or len(start) < 12 + _SIZES.size:
        return
    _, program, offset, segments = _SIZES.unpack_from(start, 12)
    expected = max(program, offset + segments)
    if size < expected:
        raise CheckpointError(f"{path} is truncated: it has {size} bytes; expected {expected}.")


def _names(stored: Any, kind: str, infos: list[Any], path: Path) -> list[str]:
    """The names of inputs or outputs; CheckpointError for programs without them."""
    if not isinstance(stored, list) or len(stored) != len(infos) or len({str(name) for name in stored}) != len(infos):
        raise CheckpointError(
            f"{path} does not name its {len(infos)} {kind}; expected a program with a method {DESCRIPTION}, as written "
            "by `rtdetr export`."
        )
    return [str(name) for name in stored]


def _shapes(names: list[str], infos: list[Any]) -> dict[str, Shape]:
    return {name: tuple(info.sizes()) for name, info in zip(names, infos, strict=True)}
