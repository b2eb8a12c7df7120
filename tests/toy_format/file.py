"""Toy files: TorchScript with the description as an extra file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.formats.base import OpenRequest
from rtdetr_tool.formats.graph_file import GraphFile
from rtdetr_tool.formats.graph_interface import read_interface

DESCRIPTION = "description.json"


@dataclass(frozen=True)
class ToyFile(GraphFile):
    network: torch.jit.ScriptModule


def read(path: str | Path, request: OpenRequest | None = None) -> ToyFile:
    extra = {DESCRIPTION: ""}
    try:
        network = torch.jit.load(str(path), _extra_files=extra)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a valid toy file: {str(error).splitlines()[0]}") from error
    stored: dict[str, Any] = json.loads(extra[DESCRIPTION])
    description = stored["description"]
    shapes = {kind: {name: tuple(shape) for name, shape in stored[kind].items()} for kind in ("inputs", "outputs")}
    return ToyFile(
        Path(path), description, read_interface(shapes["inputs"], shapes["outputs"], description, path), network
    )
