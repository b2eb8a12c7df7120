"""What a run leaves in `status.json`, and the table at its end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback

from rtdetr_tool.log import console
from rtdetr_tool.status import current_status
from rtdetr_tool.training.distributed import rank

if TYPE_CHECKING:
    from rtdetr_tool.training.fit import FitResult


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
            kpi = _figures(trainer, ("val_mAP", "val_mAP50", "val_segm_mAP", "val_loss"))
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


def say_resumed(path: Path, explicit: bool) -> str:
    """The line that a run goes on from `path`; in status.json and returned for the log."""
    why = "train.resume_training_checkpoint_path" if explicit else "the latest checkpoint of this results folder"
    message = f"Resuming from {path} ({why})."
    current_status().running(message)
    return message


def show_result(result: FitResult) -> None:
    """The table at the end of a run, on the console of the first process."""
    from rich.table import Table

    if rank() != 0:
        return
    table = Table(title="Training", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    if result.best_score is not None:
        monitor = "val_segm_mAP" if "val_segm_mAP" in result.metrics else "val_mAP"
        table.add_row(f"Best {monitor}", f"{result.best_score:.4f} (epoch {result.best_epoch})")
    for name in ("val_mAP", "val_mAP50", "val_segm_mAP", "val_segm_mAP50", "val_loss", "train_loss"):
        if name in result.metrics:
            table.add_row(f"Last {name}", f"{result.metrics[name]:.4f}")
    rows: list[tuple[str, Any]] = [("Best checkpoint", result.best_path), ("Latest checkpoint", result.latest_path)]
    for name, path in rows:
        if path is not None:
            table.add_row(name, str(path))
    console().print(table)


def _figures(trainer: Trainer, names: tuple[str, ...]) -> dict[str, float]:
    return {name: float(trainer.callback_metrics[name]) for name in names if name in trainer.callback_metrics}
