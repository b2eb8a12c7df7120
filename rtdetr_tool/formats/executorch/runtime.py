"""An ExecuTorch program in its runtime, on the CPU."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.formats.base import OpenRequest
from rtdetr_tool.formats.batching import BatchLimits, run_in_batches
from rtdetr_tool.formats.executorch.file import ExecutorchFile, load_network
from rtdetr_tool.formats.graph_tensors import predictions_of, to_graph
from rtdetr_tool.messages import first_line
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.structures import Predictions
from rtdetr_tool.spec import ExperimentSpec


def build_runtime(
    file: ExecutorchFile, spec: ExperimentSpec, class_map: ClassMap | None, request: OpenRequest
) -> ExecutorchRuntime:
    return ExecutorchRuntime(file, class_map)


class ExecutorchRuntime:
    """A detector's program with a fixed batch size; batches are split and padded to it."""

    def __init__(self, file: ExecutorchFile, class_map: ClassMap | None = None) -> None:
        self.class_map, self.interface = class_map, file.interface
        self.name = f"ExecuTorch {file.version}"
        self.input_size = file.interface.size
        batch = file.interface.batch or 1
        self.limits = BatchLimits(batch, batch)
        self.device = torch.device("cpu")
        self._method, self._path = file.method, file.path

    def predict(self, images: Tensor) -> Predictions:
        images = to_graph(images, self.interface.layout)
        return predictions_of(run_in_batches(images, self.limits, self._run), self.interface)

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        try:
            outputs = self._method.execute([images.to(torch.float32).contiguous()])
        except RuntimeError as error:
            raise CheckpointError(f"{self.name} cannot run {self._path}: {first_line(error)}") from error
        return dict(zip(self.interface.outputs, outputs, strict=True))


def run_once(path: Path, images: Tensor) -> dict[str, Tensor]:
    """All outputs of a program with one input for `images`, which are passed unchanged."""
    method, stored = load_network(path)
    return dict(zip(stored["outputs"], method.execute([images]), strict=True))
