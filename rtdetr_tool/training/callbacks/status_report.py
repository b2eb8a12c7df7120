"""Write the progress of a run to `status.json`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback

from rtdetr_tool.spec.metric_names import MAIN_SCORES, TRAIN_LOSS, VAL_LOSS, tao_name
from rtdetr_tool.status import current_status

if TYPE_CHECKING:
    from rtdetr_tool.training.module import DetectorModule

_TRAINING = (TRAIN_LOSS, "train/loss_distillation")
_VALIDATION = (*(f"val/{name}" for name in (*MAIN_SCORES, "F1", "precision", "recall")), VAL_LOSS)
_PER_CLASS = "val/AP/"


class StatusReport(Callback):
    """Write TAO's status lines: metrics by TAO's names, and on each epoch's line the metrics of that epoch."""

    def __init__(self) -> None:
        self._epoch_started = 0.0
        self._epochs = 0
        self._seconds = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        current_status().started("Starting Training Loop.")
        self._epoch_started = time.monotonic()  # a run may resume in the middle of an epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_started = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            metrics = cast("DetectorModule", pl_module).metrics
            per_class = [name for name in trainer.callback_metrics if name.startswith(_PER_CLASS)]
            undefined = {tao_name(name): None for name in _VALIDATION if metrics.get(name, 0.0) is None}
            kpi = _logged(trainer, (*_VALIDATION, *per_class)) | undefined
            current_status().running("Eval metrics generated.", kpi=kpi)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = time.monotonic() - self._epoch_started
        self._epochs, self._seconds = self._epochs + 1, self._seconds + seconds
        epoch, steps = trainer.current_epoch, int(trainer.num_training_batches)
        epochs = trainer.max_epochs or epoch + 1
        status = current_status()
        status.running("Train metrics generated.", kpi=_logged(trainer, _TRAINING))
        status.running(
            "Training loop in progress",
            epoch=epoch,
            max_epoch=epochs - 1,
            step=trainer.global_step,
            max_step=epochs * steps,
            time_per_epoch=seconds,
            time_per_step=seconds / max(steps, 1),
            eta=self._seconds / self._epochs * (epochs - epoch - 1),
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        current_status().running("Training loop complete.")


def _logged(trainer: Trainer, names: Sequence[str]) -> dict[str, float | None]:
    metrics = trainer.callback_metrics
    return {tao_name(name): float(metrics[name]) for name in names if name in metrics}
