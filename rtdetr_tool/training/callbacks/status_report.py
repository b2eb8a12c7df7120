"""What a run leaves in `status.json`."""

from __future__ import annotations

import time

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback

from rtdetr_tool.status import current_status


class StatusReport(Callback):
    """Status lines in TAO's words; figures are numbers, and each epoch's line carries that epoch's figures."""

    def __init__(self) -> None:
        self._epoch_started = 0.0
        self._epochs = 0
        self._seconds = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        current_status().started("Starting Training Loop.")
        self._epoch_started = time.monotonic()  # a run may go on in the middle of an epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_started = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            names = ("val_mAP", "val_mAP50", "val_segm_mAP", "val_loss")
            undefined = {name: None for name in names if name in pl_module.metrics and pl_module.metrics[name] is None}
            kpi = _figures(trainer, names) | undefined
            current_status().running("Eval metrics generated.", kpi=kpi)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = time.monotonic() - self._epoch_started
        self._epochs, self._seconds = self._epochs + 1, self._seconds + seconds
        epoch, steps = trainer.current_epoch, int(trainer.num_training_batches)
        status = current_status()
        status.running("Train metrics generated.", kpi=_figures(trainer, ("train_loss", "train_loss_distillation")))
        status.running(
            "Training loop in progress",
            epoch=epoch,
            max_epoch=trainer.max_epochs - 1,
            step=trainer.global_step,
            max_step=trainer.max_epochs * steps,
            time_per_epoch=seconds,
            time_per_step=seconds / max(steps, 1),
            eta=self._seconds / self._epochs * (trainer.max_epochs - epoch - 1),
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        current_status().running("Training loop complete.")


def _figures(trainer: Trainer, names: tuple[str, ...]) -> dict[str, float]:
    return {name: float(trainer.callback_metrics[name]) for name in names if name in trainer.callback_metrics}
