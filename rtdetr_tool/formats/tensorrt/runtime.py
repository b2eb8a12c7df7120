"""Run a TensorRT or TensorRT-RTX engine on PyTorch's tensors and streams."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rtdetr_tool.formats.base import OpenRequest
from rtdetr_tool.formats.batching import BatchLimits, run_in_batches
from rtdetr_tool.formats.graph_tensors import predictions_of, to_graph
from rtdetr_tool.formats.tensorrt.file import TYPES, EngineFile
from rtdetr_tool.formats.tensorrt.library import made
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.structures import Predictions
from rtdetr_tool.spec import ExperimentSpec


def build_runtime(
    file: EngineFile, spec: ExperimentSpec, class_map: ClassMap | None, request: OpenRequest
) -> EngineRuntime:
    return EngineRuntime(file, class_map)


class EngineRuntime:
    """An engine, ready to predict on one GPU."""

    def __init__(self, file: EngineFile, class_map: ClassMap | None = None) -> None:
        self.path, self.class_map, self.description = file.path, class_map, file.description
        self.device, self.library = file.device, file.library
        self.name = file.library.name.lower()
        self._runtime, self._engine = file.library_runtime, file.engine
        with torch.cuda.device(self.device), self.library.listening() as messages:
            self._context = made(self._engine.create_execution_context(), f"preparing {file.path} to run", messages)
        self.interface = file.interface
        self.input, self.outputs = self.interface.layout.input, self.interface.outputs
        self.input_size, self.limits = self.interface.size, _limits(self._engine, self.input)
        self.num_classes = self.interface.classes
        self._stream = torch.cuda.Stream(self.device)

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Predictions:
        images = to_graph(images, self.interface.layout)
        return predictions_of(run_in_batches(images, self.limits, self._run), self.interface)

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        """Run one batch of a supported size.

        It runs in a separate stream, because TensorRT synchronizes the whole device in the default stream; the two
        streams wait for each other.
        """
        images = images.to(self.device, TYPES[self._engine.get_tensor_dtype(self.input).name]).contiguous()
        caller = torch.cuda.current_stream(self.device)
        with torch.cuda.device(self.device), self.library.listening() as messages:
            made(self._context.set_input_shape(self.input, tuple(images.shape)), f"batch {len(images)}", messages)
            outputs = {name: self._buffer(name) for name in self.outputs}
            for name, tensor in {self.input: images, **outputs}.items():
                made(self._context.set_tensor_address(name, tensor.data_ptr()), f"passing {name}", messages)
            self._stream.wait_stream(caller)
            made(self._context.execute_async_v3(self._stream.cuda_stream), f"running {self.path}", messages)
            caller.wait_stream(self._stream)
        return outputs

    def _buffer(self, name: str) -> Tensor:
        shape = tuple(self._context.get_tensor_shape(name))
        return torch.empty(shape, dtype=TYPES[self._engine.get_tensor_dtype(name).name], device=self.device)


def _limits(engine: Any, name: str) -> BatchLimits:
    """The supported batch sizes, from the first optimization profile or the fixed shape."""
    shape = tuple(engine.get_tensor_shape(name))
    if -1 not in shape:
        return BatchLimits(shape[0], shape[0])
    low, _, high = (tuple(each) for each in engine.get_tensor_profile_shape(name, 0))
    return BatchLimits(low[0], high[0])
