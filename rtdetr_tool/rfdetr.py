"""The names of Roboflow's RF-DETR package (`rfdetr`, `rfdetr.config`, `rfdetr.training`) in one module.

A script of that package runs with its imports changed to this module.
"""

from __future__ import annotations

from typing import Any

from rtdetr_tool.families.rfdetr import api, configs
from rtdetr_tool.families.rfdetr.configs import ModelConfig, TrainConfig
from rtdetr_tool.families.rfdetr.primitives import RFDETRDataModule, RFDETRModule, build_trainer
from rtdetr_tool.training import convert_legacy_checkpoint

__all__ = [
    "ModelConfig", "RFDETRDataModule", "RFDETRModule", "TrainConfig", "build_trainer", "convert_legacy_checkpoint",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in api.__all__:
        return getattr(api, name)
    if name in configs.CONFIGS:
        return configs.CONFIGS[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *api.__all__, *configs.CONFIGS]
