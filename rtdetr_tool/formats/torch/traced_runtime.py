"""Run a detector in PyTorch, optimized for one batch shape; other shapes run unoptimized."""

from __future__ import annotations

import logging
import warnings

import torch
from torch import Tensor, nn

from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.torch.runtime import TorchRuntime
from rtdetr_tool.messages import first_line
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.structures import Predictions

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class TracedRuntime(TorchRuntime):
    """Predicts with a copy in another data type and, with `trace`, as a traced graph for `shape`.

    Coordinates, sums and norms stay float32 (autocast), so that boxes keep their precision.

    Args:
        shape: (batch, height, width) of the graph. More images are split into such batches; the remainder, and other
            sizes, run through the network without tracing.
        dtype: of convolutions and matrix products.

    Raises:
        UserError: the device does not support the network in `dtype`.
    """

    def __init__(
        self,
        detector: Detector,
        class_map: ClassMap | None,
        device: torch.device | str,
        shape: tuple[int, int, int],
        dtype: torch.dtype = torch.float32,
        trace: bool = True,
    ) -> None:
        self.batch, self.size = shape[0], shape[1:]
        super().__init__(detector, class_map, device, dtype)
        self.name = "torch, optimized"
        example = torch.rand(shape[0], 3, *shape[1:], device=self.device).contiguous(memory_format=torch.channels_last)
        self.graph: torch.jit.ScriptModule | None = None
        try:
            self._plain(example)
        except RuntimeError as error:
            raise UserError(
                f"{self.device} cannot run this detector in {dtype}: {first_line(error)}; use float32"
            ) from error
        if trace and not self._packs:
            with self._computing():
                self.graph = _traced(self.detector, example)

    def _computing(self) -> torch.autocast:
        """Autocast to the data type, without its cache of casts, which a traced graph would keep."""
        return torch.autocast(self.device.type, self.dtype, self.dtype != torch.float32, cache_enabled=False)

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Predictions:
        images = images.contiguous(memory_format=torch.channels_last)
        if self.graph is None or tuple(images.shape[-2:]) != self.size:
            return self._plain(images)
        whole = len(images) // self.batch * self.batch
        with self._computing():
            predictions = [Predictions(*self.graph(part)) for part in images[:whole].split(self.batch) if len(part)]
        if whole < len(images):
            predictions.append(self._plain(images[whole:]))
        logits, boxes = (torch.cat([getattr(each, name) for each in predictions]) for name in ("logits", "boxes"))
        return Predictions(logits.float(), boxes.float())

    @torch.inference_mode()
    def _plain(self, images: Tensor) -> Predictions:
        with self._computing():
            predictions = self.detector(images)
        return Predictions(predictions.logits.float(), predictions.boxes.float())


class _Outputs(nn.Module):
    """The detector with tensors as results, as tracing requires."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        predictions = self.detector(images)
        return predictions.logits, predictions.boxes


def _traced(detector: nn.Module, example: Tensor) -> torch.jit.ScriptModule:
    """The frozen graph, after the two runs that PyTorch's fuser requires."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # warnings about sizes that become constants, as intended
        graph: torch.jit.ScriptModule = torch.jit.freeze(
            torch.jit.trace(_Outputs(detector).eval(), example, check_trace=False)
        )
        for _ in range(2):
            graph(example)
    return graph
