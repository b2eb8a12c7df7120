"""The package in Python: detectors as objects."""

from rtdetr_tool.api.detector import Detector
from rtdetr_tool.api.results import PlainDetections
from rtdetr_tool.api.variants import (
    RTDETR,
    RFDETR2XLarge,
    RFDETRBase,
    RFDETRLarge,
    RFDETRLarge2025,
    RFDETRMedium,
    RFDETRNano,
    RFDETRSmall,
    RFDETRXLarge,
)

__all__ = [
    "RTDETR",
    "Detector",
    "PlainDetections",
    "RFDETR2XLarge",
    "RFDETRBase",
    "RFDETRLarge",
    "RFDETRLarge2025",
    "RFDETRMedium",
    "RFDETRNano",
    "RFDETRSmall",
    "RFDETRXLarge",
]
