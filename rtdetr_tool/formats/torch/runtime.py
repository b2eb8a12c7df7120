"""Run a detector in PyTorch: folded, in eval mode and channels_last, with packed linear layers on the CPU."""

from __future__ import annotations

import logging
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.base import OpenRequest
from rtdetr_tool.formats.torch.file import WeightsFile, build_network
from rtdetr_tool.formats.torch.packed_linear import pack_linears
from rtdetr_tool.messages import first_line
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.structures import Predictions
from rtdetr_tool.spec import ExperimentSpec

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # by name in the spec


def build_runtime(
    file: WeightsFile, spec: ExperimentSpec, class_map: ClassMap | None, request: OpenRequest
) -> TorchRuntime:
    detector = build_network(file, spec)
    return TorchRuntime(detector, class_map, request.device, DTYPES[request.precision], request.compiled)


class TorchRuntime:
    """Predicts with a copy of a detector; the detector itself is not changed.

    Args:
        dtype: of convolutions and matrix products. Coordinates, sums and norms stay float32 (autocast), so that boxes
            keep their precision.
        compiled: compile the network with torch.compile for the size of the first batch (on a GPU as a CUDA graph).
            Smaller batches are padded; larger batches and other image sizes are compiled again.

    Raises:
        UserError: fp16 on a CPU.
    """

    input_size = None
    compile_backend: ClassVar[str] = "inductor"

    def __init__(
        self,
        detector: Detector,
        class_map: ClassMap | None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        compiled: bool = False,
    ) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self.class_map = class_map
        if dtype == torch.float16 and self.device.type == "cpu":
            raise UserError("precision: fp16 is not supported on a CPU; use bf16 or fp32")
        precision = next(name for name, value in DTYPES.items() if value == dtype)
        parts = ["torch", *([precision] if precision != "fp32" else []), *(["compiled"] if compiled else [])]
        self.name = ", ".join(parts)
        self.detector = detector.deploy().to(self.device).to(memory_format=torch.channels_last)
        self.compiled, self._batch = compiled, 0
        self._network: nn.Module = self.detector
        if compiled:
            self._network = cast(nn.Module, self._compile())
        elif self._packs:
            pack_linears(self.detector)

    def _compile(self) -> object:
        cuda = self.device.type == "cuda" and self.compile_backend == "inductor"
        mode = "reduce-overhead" if cuda else None
        return torch.compile(self.detector, backend=self.compile_backend, dynamic=False, mode=mode)

    @property
    def _packs(self) -> bool:
        """Whether to pack linear layers for the CPU."""
        return self.device.type == "cpu" and self.dtype == torch.float32

    def _computing(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Predictions:
        count = len(images)
        if self.compiled:
            self._batch = max(self._batch, count)
            images = F.pad(images, [0] * 7 + [self._batch - count]) if count < self._batch else images
        with self._computing():
            predictions = self._run(images.contiguous(memory_format=torch.channels_last))
        predictions = predictions.map(lambda tensor: tensor[:count])
        predictions.logits, predictions.boxes = predictions.logits.float(), predictions.boxes.float()
        return predictions

    def _run(self, images: Tensor) -> Predictions:
        if not self.compiled:
            return cast(Predictions, self._network(images))
        try:
            predictions = cast(Predictions, self._network(images))
        except torch._dynamo.exc.TorchDynamoException as error:
            raise UserError(
                f"torch.compile failed on this machine: {first_line(error)}. Set the command's `compile` to false."
            ) from error
        # The next run of a CUDA graph overwrites its outputs.
        return predictions.map(Tensor.clone) if self.device.type == "cuda" else predictions
