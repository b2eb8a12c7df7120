"""MNN files of detectors: a network whose `bizCode`, a free text, is JSON with names, shapes and the description.

An MNN file itself stores no shapes of outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.files import open_regular, parse_json
from rtdetr_tool.formats.base import OpenRequest
from rtdetr_tool.formats.graph_file import GraphFile
from rtdetr_tool.formats.graph_interface import Shape, read_interface
from rtdetr_tool.formats.mnn.library import library_version, load_engine, silenced


@dataclass(frozen=True)
class MnnFile(GraphFile):
    """A detector's MNN file, loaded into the engine.

    Args:
        network: `MNN.nn._Module`; its outputs are in the order of `interface.outputs`.
    """

    network: Any


def read(path: str | Path, request: OpenRequest | None = None) -> MnnFile:
    """Read a detector's file and load it into the engine, in FP32 with as many threads as PyTorch has.

    Raises:
        CheckpointError: it is missing, corrupted or no detector.
        UserError: MNN is not installed or cannot be loaded.
    """
    path = Path(path)
    network, stored = load_network(path)
    description = stored.get("description")
    description = description if isinstance(description, dict) else {}
    interface = read_interface(_shapes(stored, "inputs"), _shapes(stored, "outputs"), description, path)
    return MnnFile(path, description, interface, network)


def load_network(path: Path) -> tuple[Any, Mapping[str, Any]]:
    """The network of a file, and what its `bizCode` contains; the errors of `read`."""
    _check(path)
    engine, _ = load_engine(path)
    settings = {"backend": 0, "precision": "high", "numThread": torch.get_num_threads()}
    try:
        with silenced():
            network = engine.load_module_from_file(
                str(path), [], [], runtime_manager=engine.create_runtime_manager((settings,))
            )
        info = network.get_info()
    except (SystemError, RuntimeError, ValueError) as error:  # SystemError: the engine returned no network
        raise CheckpointError(
            f"MNN {library_version()} cannot read {path}; it is no MNN file, or it is truncated or corrupted."
        ) from error
    try:
        stored = parse_json(info["bizCode"])
    except (ValueError, KeyError):
        stored = None
    if not isinstance(stored, dict) or list(_shapes(stored, "outputs")) != list(info["outputNames"]):
        raise CheckpointError(
            f"{path} does not describe its inputs and outputs; expected an MNN file that was written by "
            "`rtdetr export export.format=mnn`."
        )
    return network, stored


def _shapes(stored: Mapping[str, Any], kind: str) -> dict[str, Shape]:
    """Name -> shape of the inputs or outputs; without entries that are no shapes."""
    entries = stored.get(kind)
    return {
        name: tuple(side if isinstance(side, int) else None for side in shape)
        for name, shape in (entries.items() if isinstance(entries, dict) else ())
        if isinstance(shape, list)
    }


def _check(path: Path) -> None:
    """CheckpointError if a file is missing or unreadable."""
    try:
        open_regular(path).close()
    except FileNotFoundError:
        raise CheckpointError(f"There is no MNN file at {path}.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
