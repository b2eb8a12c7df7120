"""RT-DETR in the Python API."""

from __future__ import annotations

import os
from typing import Any

import torch

from rtdetr_tool.api.detector import Detector
from rtdetr_tool.api.opening import open_variant
from rtdetr_tool.spec import ModelSpec

__all__ = ["RTDETR"]


class RTDETR(Detector):
    """An RT-DETR.

    Args:
        backbone: name of the backbone, as the spec's `model.backbone`.
        pretrain_weights: a file of this tool, TAO, the official RT-DETR or transformers; None for random weights.
        num_classes: by default that of the weights, or 80.
        keywords: fields of `model` (`num_queries=100`, `pretrained_backbone_path="timm"`).
    """

    def __init__(
        self,
        backbone: str = "resnet_50",
        pretrain_weights: str | os.PathLike[str] | None = None,
        num_classes: int | None = None,
        device: torch.device | str = "auto",
        **keywords: Any,
    ) -> None:
        base = {"model.arch": "rtdetr", "model.backbone": backbone}
        super().__init__(*open_variant(pretrain_weights, base, keywords, num_classes, type(self).__name__), device)


def class_of(model: ModelSpec) -> type[RTDETR]:
    """The class of a detector with this `model` section."""
    return RTDETR
