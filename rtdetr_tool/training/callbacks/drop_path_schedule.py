"""Schedule stochastic depth (Huang et al. 2016, arXiv:1603.09382) over a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytorch_lightning import Callback, LightningModule, Trainer

if TYPE_CHECKING:
    from timm.layers import DropPath


class DropPathSchedule(Callback):
    """Scale the drop rates that the model was built with.

    The factor depends on the step only, so resuming needs no state. `early`: full rates in the first `epochs` epochs;
    `early_linear`: from full to zero over the steps of these epochs; `late`: full rates after them.
    """

    def __init__(self, kind: str, epochs: int) -> None:
        self.kind, self.epochs = kind, epochs
        self._rates: list[tuple[DropPath, float]] = []

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """The factor, 0..1, at an optimizer step (counted from 0)."""
        early_steps = self.epochs * steps_per_epoch
        if self.kind == "early_linear":
            return max(1 - step / max(early_steps - 1, 1), 0.0) if step < early_steps else 0.0
        return float((step < early_steps) == (self.kind == "early"))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        from timm.layers import DropPath

        self._rates = [(module, module.drop_prob) for module in pl_module.modules() if isinstance(module, DropPath)]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        steps_per_epoch = max(1, int(trainer.estimated_stepping_batches) // (trainer.max_epochs or 1))
        factor = self.factor(trainer.global_step, steps_per_epoch)
        for module, rate in self._rates:
            module.drop_prob = rate * factor
