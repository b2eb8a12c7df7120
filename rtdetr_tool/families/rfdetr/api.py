"""RF-DETR in the Python API: a class for each published variant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import torch

from rtdetr_tool.api.detector import Detector
from rtdetr_tool.api.opening import RANDOM, open_random, open_weights
from rtdetr_tool.catalog import RFDETR_VARIANTS
from rtdetr_tool.spec import ModelSpec

__all__ = [
    "RFDETR2XLarge", "RFDETRBase", "RFDETRLarge", "RFDETRLarge2025", "RFDETRMedium", "RFDETRNano", "RFDETRSmall",
    "RFDETRXLarge",
]  # fmt: skip


class RFDETR(Detector):
    """An RF-DETR; its subclasses are the published variants.

    Args:
        pretrain_weights: a file or published name; left out, the published weights of the variant, which are downloaded
            where they are not in the cache; None for random ones.
        num_classes: of yours, without background; left out, those of the weights. Another number than the weights have
            starts the class heads anew.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        keywords: fields of `model.rfdetr` (`resolution=448`) and of `model`; `accept_platform_model_license=True` where
            the weights' license must be accepted (XLarge, 2XLarge).
    """

    variant: ClassVar[str]

    def __init__(
        self,
        pretrain_weights: str | os.PathLike[str] | None = "published",
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

    def export_for_roboflow(self, output_dir: str | os.PathLike[str]) -> None:
        from rtdetr_tool.families.rfdetr.roboflow import write_bundle

        write_bundle(self._trainable("export_for_roboflow"), Path(output_dir))


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


VARIANTS: dict[str, type[RFDETR]] = {
    kind.variant: kind
    for kind in (
        RFDETRNano, RFDETRSmall, RFDETRMedium, RFDETRBase, RFDETRLarge, RFDETRLarge2025, RFDETRXLarge, RFDETR2XLarge,
    )
}  # fmt: skip


def class_of(model: ModelSpec) -> type[RFDETR]:
    """The class of a detector with this `model` section."""
    return VARIANTS[model.rfdetr.variant]
