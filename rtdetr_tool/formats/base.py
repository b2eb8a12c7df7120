"""Interfaces of the formats: `Runtime`, and the modules `file` and `runtime` of a format's package.

The interface of `export` is in `export_request`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from rtdetr_tool.formats.graph_interface import GraphInterface
from rtdetr_tool.formats.table import Format
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.structures import Predictions
from rtdetr_tool.spec import ExperimentSpec, LoadedSpec


class Runtime(Protocol):
    """A model that is ready to predict.

    `input_size` is (height, width) if the file supports only one size, else None. Images are passed on `device`.
    """

    @property
    def name(self) -> str: ...

    @property
    def class_map(self) -> ClassMap | None: ...

    @property
    def input_size(self) -> tuple[int, int] | None: ...

    @property
    def device(self) -> torch.device: ...

    def predict(self, images: Tensor) -> Predictions:
        """images [B, C, H, W] float32 0..1 on `device` -> raw predictions."""
        ...


@dataclass(frozen=True)
class Recorded:
    """The metadata of a file about its detector.

    Args:
        meta: as in `checkpoints/metadata.py`; for a file of another program only what its tensors determine.
        interface: of a deployed graph, in which input size and numbers of queries and classes are fixed.
    """

    source: str
    meta: Mapping[str, Any]
    interface: GraphInterface | None = None


@dataclass(frozen=True)
class OpenRequest:
    """How to open a file: the user's spec, and how the model runs.

    Args:
        precision, compiled: only for weights, which run in PyTorch; a deployed file has its own precision.
    """

    loaded: LoadedSpec
    device: torch.device
    onnx_provider: str = "auto"
    precision: str = "fp32"
    compiled: bool = False


class ModelFile(Protocol):
    """A file that has been read."""

    @property
    def recorded(self) -> Recorded: ...


class FileModule(Protocol):
    """`file.py` of a format."""

    def read(self, path: str, request: OpenRequest) -> ModelFile:
        """Read a file; CheckpointError if it is missing, corrupted or no detector, UserError if it cannot run here."""
        ...


class RuntimeModule(Protocol):
    """`runtime.py` of a format."""

    def build_runtime(
        self, file: Any, spec: ExperimentSpec, class_map: ClassMap | None, request: OpenRequest
    ) -> Runtime:
        """The runtime of a file that `read` returned, for its resolved spec and classes."""
        ...


def file_module(row: Format) -> FileModule:
    return cast(FileModule, row.module("file"))


def runtime_module(row: Format) -> RuntimeModule:
    return cast(RuntimeModule, row.module("runtime"))
