"""A toy file as a runtime."""

from __future__ import annotations

import torch
from torch import Tensor

from rtdetr_tool.formats.base import OpenRequest
from rtdetr_tool.formats.graph_tensors import predictions_of, to_graph
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.structures import Predictions
from rtdetr_tool.spec import ExperimentSpec
from toy_format.file import ToyFile


def build_runtime(file: ToyFile, spec: ExperimentSpec, class_map: ClassMap | None, request: OpenRequest) -> ToyRuntime:
    return ToyRuntime(file, class_map)


class ToyRuntime:
    name, device = "toy", torch.device("cpu")

    def __init__(self, file: ToyFile, class_map: ClassMap | None = None) -> None:
        self.interface, self.class_map, self.input_size = file.interface, class_map, file.interface.size
        self._network = file.network

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Predictions:
        outputs = self._network(to_graph(images, self.interface.layout))
        return predictions_of(dict(zip(self.interface.outputs, outputs, strict=True)), self.interface)
