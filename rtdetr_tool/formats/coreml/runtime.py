"""A Core ML package on macOS; it has never been run there by this project's tests, which run on Linux."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.formats.base import OpenRequest
from rtdetr_tool.formats.batching import BatchLimits, run_in_batches
from rtdetr_tool.formats.coreml.file import CoremlFile
from rtdetr_tool.formats.coreml.library import coremltools
from rtdetr_tool.formats.graph_tensors import names_to_run, predictions_of, to_graph
from rtdetr_tool.messages import first_line
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.structures import Predictions
from rtdetr_tool.spec import ExperimentSpec


def build_runtime(
    file: CoremlFile, spec: ExperimentSpec, class_map: ClassMap | None, request: OpenRequest
) -> CoremlRuntime:
    return CoremlRuntime(file, class_map)


class CoremlRuntime:
    """A detector's package with a fixed batch size; batches are split and padded to it."""

    def __init__(self, file: CoremlFile, class_map: ClassMap | None = None) -> None:
        tools = coremltools()
        self.class_map, self.interface = class_map, file.interface
        self.outputs = names_to_run(file.interface)
        self.name = f"Core ML (coremltools {tools.__version__})"
        self.input_size = file.interface.size
        batch = file.interface.batch or 1
        self.limits = BatchLimits(batch, batch)
        self.device = torch.device("cpu")
        try:
            self._model: Any = tools.models.MLModel(str(file.path))
        except Exception as error:  # of Apple's framework, without a common base
            raise CheckpointError(f"{self.name} cannot run {file.path}: {first_line(error)}") from error

    def predict(self, images: Tensor) -> Predictions:
        images = to_graph(images, self.interface.layout)
        return predictions_of(run_in_batches(images, self.limits, self._run), self.interface)

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        outputs = self._model.predict({self.interface.layout.input: images.to(torch.float32).contiguous().numpy()})
        return {name: torch.from_numpy(outputs[name]).clone() for name in self.outputs}
