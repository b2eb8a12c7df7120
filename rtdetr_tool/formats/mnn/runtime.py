"""An MNN file on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.formats.base import OpenRequest
from rtdetr_tool.formats.batching import BatchLimits, run_in_batches
from rtdetr_tool.formats.graph_tensors import predictions_of, to_graph
from rtdetr_tool.formats.mnn.file import MnnFile, load_network
from rtdetr_tool.formats.mnn.library import library_version, load_engine
from rtdetr_tool.messages import first_line
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.structures import Predictions
from rtdetr_tool.spec import ExperimentSpec


def build_runtime(file: MnnFile, spec: ExperimentSpec, class_map: ClassMap | None, request: OpenRequest) -> MnnRuntime:
    return MnnRuntime(file, class_map)


class MnnRuntime:
    """A detector's MNN file; batches of a static batch size are padded and cut."""

    def __init__(self, file: MnnFile, class_map: ClassMap | None = None) -> None:
        self.class_map, self.interface = class_map, file.interface
        self.name = f"MNN {library_version()}"
        self.input_size = file.interface.size
        self.limits = BatchLimits(file.interface.batch or 1, file.interface.batch)
        self.device = torch.device("cpu")
        self._network, self._path = file.network, file.path

    def predict(self, images: Tensor) -> Predictions:
        images = to_graph(images, self.interface.layout)
        return predictions_of(run_in_batches(images, self.limits, self._run), self.interface)

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        try:
            return run_network(self._network, self.interface.outputs, images)
        except (SystemError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{self.name} cannot run {self._path}: {first_line(error)}") from error


def run_network(network: Any, names: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """All outputs of a network for one input."""
    _, expressions = load_engine("a network")
    array = images.to(torch.float32).contiguous().numpy()
    outputs = network.forward([expressions.const(array, list(array.shape), expressions.NCHW)])
    planar = (expressions.convert(output, expressions.NCHW) for output in outputs)
    return {name: torch.from_numpy(output.read().copy()) for name, output in zip(names, planar, strict=True)}


def run_once(path: Path, images: Tensor) -> dict[str, Tensor]:
    """All outputs of a file with one input for `images`, which are passed unchanged."""
    network, stored = load_network(path)
    return run_network(network, list(stored["outputs"]), images)
