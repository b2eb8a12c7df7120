"""RF-DETR in the Python API: a class for each published variant."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from rtdetr_tool.spec import ModelSpec

if TYPE_CHECKING:
    pass
from rtdetr_tool.families.rfdetr.api_base import RFDETR

__all__ = [
    "RFDETR", "RFDETR2XLarge", "RFDETRBase", "RFDETRKeypointPreview", "RFDETRLarge", "RFDETRLarge2025", "RFDETRMedium",
    "RFDETRNano",
    "RFDETRSeg2XLarge", "RFDETRSegLarge", "RFDETRSegMedium", "RFDETRSegNano", "RFDETRSegPreview", "RFDETRSegSmall",
    "RFDETRSegXLarge", "RFDETRSmall", "RFDETRXLarge",
]  # fmt: skip

logger = logging.getLogger(__name__)


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
    """RF-DETR Large of 2025, which Roboflow has replaced."""

    variant = "large_2025"


class RFDETRXLarge(RFDETR):
    variant = "xlarge"


class RFDETR2XLarge(RFDETR):
    variant = "2xlarge"


class RFDETRSegPreview(RFDETR):
    variant = "seg_preview"


class RFDETRSegNano(RFDETR):
    variant = "seg_nano"


class RFDETRSegSmall(RFDETR):
    variant = "seg_small"


class RFDETRSegMedium(RFDETR):
    variant = "seg_medium"


class RFDETRSegLarge(RFDETR):
    variant = "seg_large"


class RFDETRSegXLarge(RFDETR):
    variant = "seg_xlarge"


class RFDETRSeg2XLarge(RFDETR):
    variant = "seg_2xlarge"


class RFDETRKeypointPreview(RFDETR):
    """RF-DETR with keypoints of persons; `predict` returns `KeyPoints`."""

    variant = "keypoint_preview"


VARIANTS: dict[str, type[RFDETR]] = {kind.variant: kind for kind in RFDETR.__subclasses__()}


def class_of(model: ModelSpec) -> type[RFDETR]:
    """The class of a detector with this `model` section."""
    return VARIANTS[model.rfdetr.variant]
