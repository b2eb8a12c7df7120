"""Stop a run when its validation score no longer improves."""

from __future__ import annotations

import logging
import math
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from rtdetr_tool.spec.metric_names import VAL_MAP, averaged_name, logged_name
from rtdetr_tool.spec.train import EarlyStoppingSpec
from rtdetr_tool.training.callbacks.ema import average_of
from rtdetr_tool.training.callbacks.epoch_resume import POSITION_KEY

logger = logging.getLogger(__name__)


class EarlyStopping(Callback):
    """Stop after `patience` validations in a row whose `monitor` is not more than `min_delta` above the best so far.

    With EMA, the averaged weights are what is validated. If both the averaged and the trained weights are validated,
    the better score counts, or with `use_ema` that of the averaged weights. All ranks see the same scores and stop
    together. A validation with an undefined score neither improves nor counts as one without improvement. A stopped
    run is finished: resuming from its checkpoint with the same `patience` trains nothing.
    """

    def __init__(
        self,
        patience: int = 10,
        min_delta: float = 0.001,
        monitor: str = VAL_MAP,
        use_ema: bool = False,
        skip_epochs: int = 0,
    ) -> None:
        self.patience, self.min_delta, self.monitor, self.use_ema = patience, min_delta, logged_name(monitor), use_ema
        self.skip_epochs = skip_epochs  # whose scores do not count
        self.best: float | None = None
        self.waited = 0

    @classmethod
    def from_spec(cls, section: EarlyStoppingSpec, monitor: str, skip_epochs: int = 0) -> EarlyStopping:
        return cls(section.patience, section.min_delta, monitor, section.use_ema, skip_epochs)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.current_epoch < self.skip_epochs:
            return
        average = average_of(trainer)
        names = [self.monitor]
        if average is not None and average.validates_both:
            names = [averaged_name(self.monitor), *(() if self.use_ema else names)]
        scores = [float(trainer.callback_metrics[name]) for name in names if name in trainer.callback_metrics]
        score = max((score for score in scores if math.isfinite(score)), default=None)
        if score is None:
            return
        if self.best is None or score > self.best + self.min_delta:
            self.best, self.waited = score, 0
            return
        self.waited += 1
        if self.stopped:
            trainer.should_stop = True
            logger.info(
                "Stopping early: %s has not improved on %.4f by more than %g in %d validations",
                self.monitor, self.best, self.min_delta, self.waited,
            )  # fmt: skip

    @property
    def stopped(self) -> bool:
        return self.waited >= self.patience

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep a finished run finished. Lightning calls this before `load_state_dict`, which has no trainer."""
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if trainer.state.fn == "fit" and state is not None and POSITION_KEY not in checkpoint:
            trainer.should_stop = state["waited"] >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.waited = state_dict["best"], state_dict["waited"]
