"""RT-DETR in the Python API."""

from __future__ import annotations

import os
from typing import Any

import torch

from rtdetr_tool.api.detector import Detector
from rtdetr_tool.api.opening import RANDOM, open_random, open_weights
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
        where = type(self).__name__
        if pretrain_weights is None:
            super().__init__(open_random(base, keywords, num_classes, where), RANDOM, device)
        else:
            name = os.fspath(pretrain_weights)
            super().__init__(open_weights(name, base, keywords, num_classes, where), name, device)


def class_of(model: ModelSpec) -> type[RTDETR]:
    """The class of a detector with this `model` section."""
    return RTDETR
