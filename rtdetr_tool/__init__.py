"""Train, evaluate and deploy real-time detection transformers from one spec file.

The names below are imported when they are first used: `import rtdetr_tool` itself imports neither torch nor Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Public name -> module that defines it.
_PUBLIC = {
    **dict.fromkeys(
        (
            "Detector", "RTDETR", "RFDETRNano", "RFDETRSmall", "RFDETRMedium", "RFDETRBase", "RFDETRLarge",
            "RFDETRLarge2025", "RFDETRXLarge", "RFDETR2XLarge", "PlainDetections",
        ),
        "rtdetr_tool.api",
    ),
    "ExperimentSpec": "rtdetr_tool.spec",
    "load_spec": "rtdetr_tool.spec",
    "read_spec": "rtdetr_tool.spec",
    "DetectorModule": "rtdetr_tool.training",
    "DetectionDataModule": "rtdetr_tool.training",
    "build_trainer": "rtdetr_tool.training",
    "convert_legacy_checkpoint": "rtdetr_tool.training",
    "build_detector": "rtdetr_tool.models.build",
    "build_criterion": "rtdetr_tool.losses.build",
    "open_model": "rtdetr_tool.runtimes.open",
    "CocoEvaluator": "rtdetr_tool.metrics.coco",
    "RtdetrError": "rtdetr_tool.errors",
    "UserError": "rtdetr_tool.errors",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name == "__version__":
        return import_module("rtdetr_tool.version").package_version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
