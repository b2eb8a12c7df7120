"""Run a session of onnxruntime on PyTorch's tensors, on the CPU or on a GPU, without copies of images and outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

_TYPES: dict[str, tuple[torch.dtype, type[np.generic]]] = {
    "tensor(float)": (torch.float32, np.float32),
    "tensor(float16)": (torch.float16, np.float16),
}
_Shapes = tuple[tuple[int, ...], ...]


class BoundSession:
    """A session with one input, which reads images and writes outputs at the addresses of PyTorch's tensors.

    The declared shapes of a graph may be unknown or wrong, so the first batch of each shape runs without bound outputs.

    Args:
        outputs: names of the outputs to compute.
        device: of images and outputs; a GPU only if the session runs on it.
        stream: PyTorch's stream in which the session runs (`user_compute_stream`), on a GPU.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        outputs: Sequence[str],
        device: torch.device,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        self.session, self.outputs, self.device, self._stream = session, list(outputs), device, stream
        first = session.get_inputs()[0]
        self._input, self._input_type = first.name, _TYPES.get(first.type, _TYPES["tensor(float)"])
        types = {output.name: output.type for output in session.get_outputs()}
        self._types = [_TYPES.get(types[name]) for name in self.outputs]
        self._shapes: dict[tuple[int, ...], _Shapes] = {}  # of the outputs, by shape of the images
        self._index = device.index or 0

    def run(self, images: Tensor) -> dict[str, Tensor]:
        """The outputs for images [B, 3, H, W], on `device`."""
        images = images.to(self.device, self._input_type[0]).contiguous()
        shapes, binding = self._shapes.get(tuple(images.shape)), self.session.io_binding()
        self._bind(binding.bind_input, self._input, images, self._input_type[1])
        if shapes is None:
            return self._run_unbound(binding, images)
        buffers = {}
        for name, output_type, shape in zip(self.outputs, self._types, shapes, strict=True):
            assert output_type is not None
            buffers[name] = torch.empty(shape, dtype=output_type[0], device=self.device)
            self._bind(binding.bind_output, name, buffers[name], output_type[1])
        with self._ordered():
            self.session.run_with_iobinding(binding)
        return buffers

    def _run_unbound(self, binding: Any, images: Tensor) -> dict[str, Tensor]:
        """Run with outputs that onnxruntime allocates on the CPU, and remember their shapes."""
        for name in self.outputs:
            binding.bind_output(name)
        with self._ordered():
            self.session.run_with_iobinding(binding)
        arrays = binding.copy_outputs_to_cpu()
        if None not in self._types:
            self._shapes[tuple(images.shape)] = tuple(array.shape for array in arrays)
        return {name: torch.from_numpy(array).to(self.device) for name, array in zip(self.outputs, arrays, strict=True)}

    def _bind(self, bind: Any, name: str, tensor: Tensor, element_type: type[np.generic]) -> None:
        bind(name, self.device.type, self._index, element_type, tuple(tensor.shape), tensor.data_ptr())

    @contextmanager
    def _ordered(self) -> Iterator[None]:
        """On a GPU, run after the caller's work so far and before its work from here on."""
        if self._stream is None:
            yield
            return
        caller = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(caller)
        yield
        caller.wait_stream(self._stream)
