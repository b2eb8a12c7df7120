"""The protocol that every inference engine speaks."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.structures import Predictions


class Runtime(Protocol):
    """A model that is ready to predict.

    `input_size` is (height, width) where the engine has a fixed one, else None.
    """

    name: str
    class_map: ClassMap | None
    input_size: tuple[int, int] | None
    device: torch.device

    def predict(self, images: Tensor) -> Predictions:
        """images [B, 3, H, W] float32 RGB 0..1 on `device` -> raw predictions."""
        ...
