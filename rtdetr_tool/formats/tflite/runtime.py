"""Run a TFLite file in the LiteRT interpreter, on the CPU."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rtdetr_tool.formats.base import OpenRequest
from rtdetr_tool.formats.batching import BatchLimits, run_in_batches
from rtdetr_tool.formats.graph_tensors import names_to_run, predictions_of, to_graph
from rtdetr_tool.formats.tflite.file import TfliteFile, load_runner
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.structures import Predictions
from rtdetr_tool.spec import ExperimentSpec


def build_runtime(
    file: TfliteFile, spec: ExperimentSpec, class_map: ClassMap | None, request: OpenRequest
) -> LiteRtRuntime:
    return LiteRtRuntime(file, class_map)


class LiteRtRuntime:
    """A detector's TFLite file with a fixed batch size; batches are split and padded to it."""

    def __init__(self, file: TfliteFile, class_map: ClassMap | None = None) -> None:
        self.class_map = class_map
        self.interface, self.outputs = file.interface, names_to_run(file.interface)
        self.name = f"LiteRT {file.version}"
        self.input_size = file.interface.size
        batch = file.interface.batch or 1
        self.limits = BatchLimits(batch, batch)
        self.device = torch.device("cpu")
        self._runner = file.runner

    def predict(self, images: Tensor) -> Predictions:
        images = to_graph(images, self.interface.layout)
        return predictions_of(run_in_batches(images, self.limits, self._run), self.interface)

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        outputs = self._runner(**{self.interface.layout.input: images.to(torch.float32).contiguous().numpy()})
        return {name: torch.from_numpy(outputs[name].copy()) for name in self.outputs}


def run_once(path: Path, images: Tensor) -> dict[str, Tensor]:
    """All outputs of a file with one input for `images`, which are passed unchanged."""
    runner, _ = load_runner(path)
    (name,) = runner.get_input_details()
    return {name: torch.from_numpy(output.copy()) for name, output in runner(**{name: images.numpy()}).items()}
