"""Strategies that share a model out over the processes, and what of ours cannot work with them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from pytorch_lightning import Callback
from pytorch_lightning.strategies import DeepSpeedStrategy, FSDPStrategy, Strategy

from rtdetr_tool.errors import SpecError
from rtdetr_tool.training.callbacks.ema import ExponentialMovingAverage
from rtdetr_tool.training.callbacks.preemption import PreemptionSave
from rtdetr_tool.training.checkpointing import PeriodicCheckpoint

logger = logging.getLogger(__name__)

_KINDS = {"fsdp": FSDPStrategy, "deepspeed": DeepSpeedStrategy}
_NO_WHOLE = "no process holds whole weights that could be averaged; train.enable_ema needs ddp"
_FOLDERS = "this strategy's checkpoints are folders in a form of its own; Lightning's ModelCheckpoint writes them"


class SafeFSDP(FSDPStrategy):
    """FSDP that resumes only from files of weights and plain data: Lightning's reader runs what a pickle says."""

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        self.checkpoint_io.load_checkpoint(checkpoint_path)
        return super().load_checkpoint(checkpoint_path, weights_only)


def sharding_of(strategy: str | Strategy) -> str | None:
    """`fsdp` or `deepspeed` for a strategy or one of Lightning's names of them (`deepspeed_stage_2`), else None."""
    for kind, made in _KINDS.items():
        if strategy.startswith(kind) if isinstance(strategy, str) else isinstance(strategy, made):
            return kind
    return None


def callbacks_for(strategy: str | Strategy, callbacks: Sequence[Callback]) -> list[Callback]:
    """The callbacks that can work with a strategy; which cannot, and why, is logged."""
    kept = []
    for callback in callbacks:
        why = next((why for kind, why in _reasons(strategy).items() if isinstance(callback, kind)), None)
        if why is None:
            kept.append(callback)
        else:
            logger.warning("%s is left out with %s: %s.", type(callback).__name__, sharding_of(strategy), why)
    return kept


def check_skipping(strategy: str | Strategy, non_finite_loss: str) -> None:
    """SpecError where steps are to be left out by a strategy that cannot."""
    if sharding_of(strategy) == "deepspeed" and non_finite_loss == "skip":
        raise SpecError("train.non_finite_loss skip does not work with DeepSpeed, which hides its gradients; use stop")


def _reasons(strategy: str | Strategy) -> dict[type[Callback], str]:
    kind = sharding_of(strategy)
    if kind is None:
        return {}
    if kind == "deepspeed" or getattr(strategy, "_state_dict_type", "full") == "sharded":
        return {ExponentialMovingAverage: _NO_WHOLE, PeriodicCheckpoint: _FOLDERS, PreemptionSave: _FOLDERS}
    return {ExponentialMovingAverage: _NO_WHOLE}
