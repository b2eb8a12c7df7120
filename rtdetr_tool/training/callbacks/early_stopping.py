"""Stop a run whose validation score no longer improves."""

from __future__ import annotations

import logging
import math
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from rtdetr_tool.training.callbacks.epoch_resume import POSITION_KEY

logger = logging.getLogger(__name__)


class EarlyStopping(Callback):
    """Stop after `patience` validations in a row whose `monitor` is not more than `min_delta` above the best so far.

    With EMA, the averaged weights are what is validated. All ranks see the same scores and stop together. A validation
    with an undefined score neither improves nor counts as one without improvement. A stopped run is finished: resuming
    from its checkpoint with the same `patience` trains nothing.
    """

    def __init__(self, patience: int = 10, min_delta: float = 0.001, monitor: str = "val_mAP") -> None:
        self.patience, self.min_delta, self.monitor = patience, min_delta, monitor
        self.best: float | None = None
        self.waited = 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logged = trainer.callback_metrics.get(self.monitor)
        if trainer.state.fn != "fit" or trainer.sanity_checking or logged is None:
            return
        score = float(logged)
        if not math.isfinite(score):
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
