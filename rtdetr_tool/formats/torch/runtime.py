"""A detector in PyTorch: RepVGG fused, eval mode, channels_last, on the CPU linear layers packed."""

from __future__ import annotations

import torch
from torch import Tensor

from rtdetr_tool.formats.torch.packed_linear import pack_linears
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.structures import Predictions


class TorchRuntime:
    """Wraps a detector (a copy; the given one stays as it is)."""

    name = "torch"
    input_size = None

    def __init__(self, detector: Detector, class_map: ClassMap | None, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.class_map = class_map
        self.detector = detector.deploy().to(self.device, memory_format=torch.channels_last)
        if self._packs:
            pack_linears(self.detector)

    @property
    def _packs(self) -> bool:
        """Whether linear layers are packed for the CPU."""
        return self.device.type == "cpu"

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Predictions:
        return self.detector(images.contiguous(memory_format=torch.channels_last))
