"""Write the report of a run after its validations and at its end."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback

from rtdetr_tool.metrics.result import score_text
from rtdetr_tool.training.callbacks.periodic_checkpoint import checkpoints_of
from rtdetr_tool.training.loggers import log_images, save_table

if TYPE_CHECKING:
    from rtdetr_tool.reports.page import Section
    from rtdetr_tool.reports.run import TrainingReport
    from rtdetr_tool.training.epoch_scores import ScoredModule

logger = logging.getLogger(__name__)

_PAGE = "report.html"
_SHARE = 0.05  # of the run's time that reports may take


class RunReport(Callback):
    """Keep `report.html` in a results folder up to date, and send its charts to the loggers that show images.

    A report is written when the first epoch after a validation starts, unless reports have taken more than 5 % of the
    run's time, and when training ends. Nothing that goes wrong with it ends the run.
    """

    def __init__(self, folder: Path, title: str = "Training") -> None:
        self.folder, self.title = folder, title
        self._started = self._cost = 0.0
        self._images = 0
        self._resumed_at = 0
        self._dataset_sections: list[Section] | None = None
        self._failed = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._resumed_at = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += len(batch) * trainer.world_size

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if cast("ScoredModule", pl_module).evaluation is not None:
            elapsed = time.monotonic() - self._started
            if self._cost <= _SHARE * elapsed or not (self.folder / _PAGE).exists():
                self._write(trainer, cast("ScoredModule", pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, cast("ScoredModule", pl_module))

    def _write(self, trainer: Trainer, module: ScoredModule) -> None:
        if not trainer.is_global_zero or self._failed:
            return
        begin = time.monotonic()
        try:
            save_table(trainer.loggers)
            report = self._report(trainer, module)
            images = report.write(self.folder)
            log_images(trainer.loggers, images, trainer.global_step)
        except Exception as error:
            self._failed = True
            logger.warning("Skipping the report of this run: %s", str(error) or type(error).__name__)
            logger.debug("traceback", exc_info=error)
        module.evaluation = None
        self._cost += time.monotonic() - begin

    def _report(self, trainer: Trainer, module: ScoredModule) -> TrainingReport:
        # Importing matplotlib takes time that a run without a report does not have to spend.
        from rtdetr_tool.data.inspection import SplitCounts
        from rtdetr_tool.reports.dataset import dataset_sections
        from rtdetr_tool.reports.facts import duration_text
        from rtdetr_tool.reports.run import TrainingReport

        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by `fit`, not declared
        if self._dataset_sections is None:
            datasets = {"train": data.dataset("train")}
            if trainer.limit_val_batches:
                datasets["val"] = data.dataset("val")
            counts = {split: SplitCounts.of(dataset) for split, dataset in datasets.items()}
            self._dataset_sections = dataset_sections(datasets, counts)
        seconds = time.monotonic() - self._started
        saver = checkpoints_of(trainer)
        tiles = {"epoch": f"{trainer.current_epoch} of {trainer.max_epochs}"}
        if saver is not None and saver.best_score is not None:
            tiles[f"best {saver.monitor}, epoch {(saver.best_epoch or 0) + 1}"] = score_text(saver.best_score)
        return TrainingReport(
            title=self.title,
            tiles=tiles,
            facts={
                "steps": f"{trainer.global_step:,}" + (f", from {self._resumed_at:,}" if self._resumed_at else ""),
                "time of this start": duration_text(seconds),
                "training images": f"{self._images:,}",
                "precision": str(trainer.precision),
                "devices": f"{trainer.world_size} × {trainer.strategy.root_device.type}",
            },
            evaluation=module.evaluation,
            validated=data.dataset("val") if module.evaluation is not None else None,
            dataset_sections=self._dataset_sections,
        )
