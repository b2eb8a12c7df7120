"""Give the checkpoints of a run further names."""

from __future__ import annotations

from collections.abc import Mapping

from pytorch_lightning import Callback, LightningModule, Trainer

from rtdetr_tool.training.callbacks.periodic_checkpoint import checkpoints_of


class CheckpointNames(Callback):
    """Links the files of a run under further names.

    Args:
        names: file name by role: `latest`, `best`, `raw` or `ema` (the best file of this kind of weights).
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = dict(names)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        saver = checkpoints_of(trainer)
        if saver is not None:
            saver.other_names = self.names
