"""Report the score of each validation while a run is in progress, and end the run if it is not worth continuing."""

from __future__ import annotations

import logging
from collections.abc import Callable

from pytorch_lightning import Callback, LightningModule, Trainer

from rtdetr_tool.training.callbacks.periodic_checkpoint import checkpoints_of

logger = logging.getLogger(__name__)


class ScoreReport(Callback):
    """Calls `report(validation, score, last)` after each validation, counted from 1; if it returns True, the run ends.

    The score is the one that decides the best checkpoint. A run that is ended writes its files like any other.
    """

    def __init__(self, report: Callable[[int, float, bool], bool]) -> None:
        self.report = report
        self.ended_at: int | None = None  # the validation at which the run was ended

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        saver = checkpoints_of(trainer)
        if trainer.state.fn != "fit" or trainer.sanity_checking or saver is None:
            return
        scores = saver.scores(trainer)
        interval = trainer.check_val_every_n_epoch or 1
        validation = (trainer.current_epoch + 1) // interval
        last = trainer.max_epochs is not None and trainer.current_epoch + interval >= trainer.max_epochs
        if scores and self.report(validation, max(scores.values()), last):
            self.ended_at = validation
            trainer.should_stop = True
            logger.info("Ending this run at validation %d: its score is lower than that of other trials", validation)
