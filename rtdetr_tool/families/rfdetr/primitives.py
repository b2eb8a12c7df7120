"""The training primitives of Roboflow's package under their own names: module, data module and trainer."""

from __future__ import annotations

from typing import Any

from rtdetr_tool.families.rfdetr.configs import ModelConfig, TrainConfig, spec_of
from rtdetr_tool.families.rfdetr.run_files import RunFiles
from rtdetr_tool.ops.structures import Batch
from rtdetr_tool.training import build_trainer as build_trainer_of_spec
from rtdetr_tool.training.callbacks.compatible_checkpoints import CompatibleCheckpoints
from rtdetr_tool.training.datamodule import DetectionDataModule
from rtdetr_tool.training.module import DetectorModule


class RFDETRDataModule(DetectionDataModule):
    """`DetectionDataModule` of two configs."""

    def __init__(self, model_config: ModelConfig, train_config: TrainConfig) -> None:
        super().__init__(spec_of(model_config, train_config))
        self.model_config, self.train_config = model_config, train_config


class RFDETRModule(DetectorModule):
    """`DetectorModule` of two configs; the network is `module.detector`."""

    def __init__(self, model_config: ModelConfig, train_config: TrainConfig) -> None:
        spec = spec_of(model_config, train_config)
        super().__init__(spec, DetectionDataModule(spec).class_map)
        self.model_config, self.train_config = model_config, train_config

    def predict_step(self, batch: Batch, batch_idx: int) -> Any:
        """A dictionary per image with `scores`, `labels` and `boxes` (xyxy pixels), as in Roboflow's package."""
        return [
            {"scores": detections.scores, "labels": detections.labels, "boxes": detections.boxes}
            for detections in super().predict_step(batch, batch_idx)
        ]


def build_trainer(train_config: TrainConfig, model_config: ModelConfig, **trainer_kwargs: Any) -> Any:
    """The `pytorch_lightning.Trainer` of two configs; keywords are passed to Lightning's `Trainer` and take precedence.

    Callbacks are added to the built-in ones, whereas in Roboflow's package they replace them.
    """
    given = trainer_kwargs.pop("callbacks", None) or []
    files = CompatibleCheckpoints(RunFiles(train_config.given))
    callbacks = [*(given if isinstance(given, (list, tuple)) else [given]), files]
    return build_trainer_of_spec(spec_of(model_config, train_config), callbacks=callbacks, **trainer_kwargs)
