"""TFLite files of detectors: their description, and their interface as the LiteRT interpreter reports it.

The description is a file `metadata.json` in a zip archive that follows the model, like TFLite's own metadata:
`unzip -p model.tflite metadata.json` shows it, and interpreters ignore it.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.files import open_regular, parse_json
from rtdetr_tool.formats.base import OpenRequest
from rtdetr_tool.formats.graph_file import GraphFile
from rtdetr_tool.formats.graph_interface import Shape, read_interface
from rtdetr_tool.formats.graph_tensors import names_to_run
from rtdetr_tool.formats.table import FORMATS
from rtdetr_tool.messages import first_line

METADATA = "metadata.json"
LARGEST_METADATA = 2**24  # bytes; usually a few thousand
_MARK = slice(4, 8), b"TFL3"  # identifier of the file format, after the model's offset


@dataclass(frozen=True)
class TfliteFile(GraphFile):
    """A detector's TFLite file, loaded into the interpreter.

    Args:
        runner: a function from named arrays to named arrays.
        version: of the interpreter.
    """

    runner: Any
    version: str


def read(path: str | Path, request: OpenRequest | None = None, threads: int | None = None) -> TfliteFile:
    """Read a detector's file and load it into the interpreter.

    Args:
        threads: threads of the interpreter; None = as many as PyTorch uses.

    Raises:
        CheckpointError: it is missing, corrupted or not a detector.
        UserError: the interpreter is not installed.
    """
    path = Path(path)
    description = read_description(path)
    runner, version = load_runner(path, threads)
    inputs, outputs = runner.get_input_details(), runner.get_output_details()
    interface = read_interface(_shapes(inputs), _shapes(outputs), description, path)
    for name in (interface.layout.input, *names_to_run(interface)):
        kind = {**inputs, **outputs}[name]["dtype"]
        if kind is not np.float32:
            raise CheckpointError(f"{path}: {name} is of type {np.dtype(kind).name}; expected float32")
    return TfliteFile(path, description, interface, runner, version)


def load_runner(path: Path, threads: int | None = None) -> tuple[Any, str]:
    """A function from named arrays to named arrays, and the version of the interpreter."""
    FORMATS["tflite"].to_run.require(str(path))
    import ai_edge_litert
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(str(path), num_threads=threads or torch.get_num_threads())
        interpreter.allocate_tensors()
        return interpreter.get_signature_runner(), ai_edge_litert.__version__
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"LiteRT {ai_edge_litert.__version__} cannot run {path}: {first_line(error)}") from error


def _shapes(details: Mapping[str, Mapping[str, Any]]) -> dict[str, Shape]:
    return {
        name: tuple(int(side) if side >= 0 else None for side in tensor["shape_signature"])
        for name, tensor in details.items()
    }


def read_description(path: str | Path) -> dict[str, Any]:
    """The description in a file; empty for files of other programs.

    Raises:
        CheckpointError: it is missing, unreadable or not a TFLite file.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            start = file.read(8)
            if start[_MARK[0]] != _MARK[1]:
                size = path.stat().st_size
                raise CheckpointError(f"{path} is not a TFLite file ({size} bytes, starts with {start!r}).")
            if not zipfile.is_zipfile(file):
                return {}
            return _metadata(file)
    except FileNotFoundError:
        raise CheckpointError(f"There is no TFLite file at {path}.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


def append_description(path: Path, description: Mapping[str, Any]) -> None:
    """Append a description to a model without one."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(METADATA, json.dumps(dict(description)))


def _metadata(file: IO[bytes]) -> dict[str, Any]:
    """The metadata; empty if they are corrupted or too long, because the model may still work."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open(METADATA) as content:
            metadata = parse_json(content.read(LARGEST_METADATA))
    except (KeyError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        return {}
    return metadata if isinstance(metadata, dict) else {}
