"""The detectors by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import torch

from rtdetr_tool.api.detector import Detector
from rtdetr_tool.api.opening import open_random, open_weights
from rtdetr_tool.catalog import RFDETR_VARIANTS
from rtdetr_tool.spec import ModelSpec

RANDOM = "random weights"


class RFDETR(Detector):
    """An RF-DETR; its subclasses are the published variants.

    Args:
        pretrain_weights: a file or published name; left out, the published weights of the variant, which are downloaded
            where they are not in the cache; None for random ones.
        num_classes: of yours, without background; left out, those of the weights. Another number than the weights have
            starts the class heads anew.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        keywords: fields of `model.rfdetr` (`resolution=448`) and of `model`; `accept_platform_model_license=True` where
            the weights' licence must be accepted (XLarge, 2XLarge).
    """

    variant: ClassVar[str]

    def __init__(
        self,
        pretrain_weights: str | os.PathLike | None = "published",
        num_classes: int | None = None,
        device: torch.device | str = "auto",
        **keywords: Any,
    ) -> None:
        base = {"model.arch": "rfdetr", "model.rfdetr.variant": self.variant}
        where = type(self).__name__
        if pretrain_weights is None:
            super().__init__(open_random(base, keywords, num_classes, where), RANDOM, device)
            return
        row = RFDETR_VARIANTS[self.variant]
        name = Path(row.weights).stem if pretrain_weights == "published" else os.fspath(pretrain_weights)
        super().__init__(open_weights(name, base, keywords, num_classes, where), name, device)


class RFDETRNano(RFDETR):
    variant = "nano"


class RFDETRSmall(RFDETR):
    variant = "small"


class RFDETRMedium(RFDETR):
    variant = "medium"


class RFDETRBase(RFDETR):
    variant = "base"


class RFDETRLarge(RFDETR):
    variant = "large"


class RFDETRLarge2025(RFDETR):
    """The Large of 2025, which Roboflow has replaced."""

    variant = "large_2025"


class RFDETRXLarge(RFDETR):
    variant = "xlarge"


class RFDETR2XLarge(RFDETR):
    variant = "2xlarge"


class RTDETR(Detector):
    """An RT-DETR.

    Args:
        backbone: name of the backbone, as the spec's `model.backbone`.
        pretrain_weights: a weights file of this tool, TAO, the official RT-DETR or transformers; None for random ones.
        num_classes: left out, those of the weights, or 80.
        keywords: fields of `model` (`num_queries=100`, `pretrained_backbone_path="timm"`).
    """

    def __init__(
        self,
        backbone: str = "resnet_50",
        pretrain_weights: str | os.PathLike | None = None,
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


VARIANTS: dict[str, type[RFDETR]] = {
    kind.variant: kind
    for kind in (
        RFDETRNano, RFDETRSmall, RFDETRMedium, RFDETRBase, RFDETRLarge, RFDETRLarge2025, RFDETRXLarge, RFDETR2XLarge,
    )
}  # fmt: skip


def class_of(model: ModelSpec) -> type[Detector]:
    """The class of a detector with this `model` section."""
    return VARIANTS[model.rfdetr.variant] if model.arch == "rfdetr" else RTDETR
