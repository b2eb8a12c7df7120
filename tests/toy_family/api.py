"""The toy family in the Python API."""

from __future__ import annotations

from typing import Any

import torch

from rtdetr_tool.api.detector import Detector
from rtdetr_tool.api.opening import RANDOM, open_random

__all__ = ["ToyDetr"]


class ToyDetr(Detector):
    """A toy with random weights."""

    def __init__(self, num_classes: int | None = None, device: torch.device | str = "auto", **keywords: Any) -> None:
        super().__init__(open_random({"model.arch": "toy"}, keywords, num_classes, "ToyDetr"), RANDOM, device)


def class_of(model: Any) -> type[ToyDetr]:
    return ToyDetr
