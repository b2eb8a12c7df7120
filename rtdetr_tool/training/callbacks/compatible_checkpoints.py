"""Write the checkpoints of a run so that another program opens them too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from rtdetr_tool.checkpoints.adapters import merge_adapters
from rtdetr_tool.checkpoints.identify import TAO_PREFIX
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.spec import ExperimentSpec
from rtdetr_tool.training.callbacks.periodic_checkpoint import checkpoints_of
from rtdetr_tool.training.module import DetectorModule


class CheckpointFormat(Protocol):
    """What another program expects in the results folder of a run.

    Attributes:
        names: file name by role: `latest`, `best`, `raw` or `ema` (the best file of this kind of weights).
    """

    names: Mapping[str, str]

    def start(self, spec: ExperimentSpec, class_map: ClassMap) -> None:
        """Write what belongs next to the checkpoints. Called in the first process when training starts."""

    def keys(self, spec: ExperimentSpec, class_map: ClassMap, weights: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """The program's keys of a checkpoint. `weights` have our names."""


class CompatibleCheckpoints(Callback):
    """Adds the keys of another program to the checkpoints of a run, and links them under its file names."""

    def __init__(self, kind: CheckpointFormat) -> None:
        self.kind = kind

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        saver = checkpoints_of(trainer)
        if saver is not None:
            saver.other_names = self.kind.names

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            module = cast(DetectorModule, pl_module)
            self.kind.start(module.spec, module.class_map)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the keys after the callbacks before have put the averaged or the trained weights in place."""
        module, state = cast(DetectorModule, pl_module), checkpoint["state_dict"]
        weights = {
            name.removeprefix(TAO_PREFIX): tensor for name, tensor in state.items() if name.startswith(TAO_PREFIX)
        }
        plain = merge_adapters(weights, module.spec.model.backbone_lora.alpha)
        checkpoint.update(self.kind.keys(module.spec, module.class_map, plain))
