"""A deployed file (ONNX, TFLite, engine) in memory: its description and its interface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtdetr_tool.checkpoints.metadata import KEY, checked_metadata
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.formats.base import Recorded
from rtdetr_tool.formats.description import normalization
from rtdetr_tool.formats.graph_interface import GraphInterface


@dataclass(frozen=True)
class GraphFile:
    """The common part of all deployed files; the class of a format adds what is needed to run the file.

    Args:
        description: the metadata (see `description.py`); empty for files of other programs.
    """

    path: Path
    description: dict[str, Any]
    interface: GraphInterface

    @property
    def recorded(self) -> Recorded:
        return recorded_in(self.path, self.description, self.interface)


def recorded_in(path: str | Path, description: Mapping[str, Any], interface: GraphInterface) -> Recorded:
    """The recorded detector in a description.

    Raises:
        CheckpointError: the description contradicts the graph, or its metadata are invalid.
    """
    _check_pixels(path, description, interface)
    meta = description.get(KEY)
    if not isinstance(meta, Mapping) or "spec" not in meta:
        return Recorded(str(path), {}, interface)
    return Recorded(str(path), checked_metadata(meta, str(path)), interface)


def _check_pixels(path: str | Path, description: Mapping[str, Any], interface: GraphInterface) -> None:
    """The names of inputs and outputs determine the pixels that a graph expects; its description must agree."""
    described = description.get("normalisation")
    expected, other = (
        normalization(kind, interface.channels)
        for kind in (interface.layout.normalised, not interface.layout.normalised)
    )
    if described in (expected, other) and described != expected:
        raise CheckpointError(
            f"{path} was exported for {described}, but an input named {interface.layout.input} expects {expected}. "
            "The input was renamed or the description was changed; export the file again."
        )
