"""Training: three Lightning primitives, imported when first used; `training.fit.fit` puts them together to one run."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "DetectorModule": "module",
    "DetectionDataModule": "datamodule",
    "build_trainer": "trainer",
    "convert_legacy_checkpoint": "legacy",
}

__all__ = ["DetectionDataModule", "DetectorModule", "build_trainer", "convert_legacy_checkpoint"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
