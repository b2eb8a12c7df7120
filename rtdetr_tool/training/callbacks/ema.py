"""Exponential moving average (EMA) of all weights and batch-norm statistics."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from rtdetr_tool.training.callbacks.lookup import find_callback

logger = logging.getLogger(__name__)

AVERAGED_KEY = "ema_state_dict"  # in a checkpoint whose `state_dict` holds the trained weights
RAW_KEY = "raw_state_dict"  # in a checkpoint whose `state_dict` holds the averaged weights


def average_of(trainer: Trainer) -> ExponentialMovingAverage | None:
    """The trainer's EMA callback, if it has one."""
    return find_callback(trainer, ExponentialMovingAverage)


class ExponentialMovingAverage(Callback):
    """Update `ema = d * ema + (1 - d) * weights` every `every_n_steps` optimizer steps, and validate with it.

    Floating-point tensors (weights, running means and variances) are averaged, integer tensors are copied. The decay d
    of update n (counted from 1) is

    - without `tau`: `min(decay, (1 + n) / (10 + n))`. The ramp keeps short runs from being dominated by their random
      initial weights.
    - with `tau > 0`: `decay * (1 - exp(-n / tau))`, as in RF-DETR.
    - with `tau = 0`: `decay`, as in TAO.

    With `validate_both`, validation scores the trained weights as well (see `set_aside`).
    """

    def __init__(
        self,
        decay: float = 0.999,
        every_n_steps: int = 1,
        validate_original_weights: bool = False,
        cpu_offload: bool = False,
        tau: float | None = None,
        validate_both: bool = False,
    ) -> None:
        self.decay, self.every_n_steps, self.tau = decay, every_n_steps, tau
        self.validate_original_weights, self.cpu_offload = validate_original_weights, cpu_offload
        self.validate_both = validate_both
        self.updates = 0
        self.averages: dict[str, Tensor] = {}
        self.saving_averages = False  # while true, `on_save_checkpoint` stores the averages as `state_dict`
        self._live: dict[str, Tensor] = {}
        self._staging: dict[str, Tensor] = {}  # `cpu_offload`: the weights on their way to the host
        self._originals: list[Tensor] | None = None
        self._last_step = 0

    def decay_at(self, update: int) -> float:
        """The decay of an update, counted from 1."""
        if self.tau is None:
            return min(self.decay, (1 + update) / (10 + update))
        return self.decay * (1 - math.exp(-update / self.tau)) if self.tau > 0 else self.decay

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._live = dict(pl_module.state_dict(keep_vars=False))
        restored, self.averages, self._staging = self.averages, {}, {}
        for name, tensor in self._live.items():
            start = restored.get(name, tensor)
            device = "cpu" if self.cpu_offload else tensor.device
            average = torch.empty_like(tensor, device=device)
            if self.cpu_offload and tensor.is_cuda:
                average = average.pin_memory()
            self.averages[name] = average.copy_(start)
        self._last_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        step = trainer.global_step
        if step == self._last_step:  # accumulating gradients: no optimizer step yet
            return
        self._last_step = step
        if step % self.every_n_steps == 0:
            self.update()

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages one step toward the current weights."""
        self.updates += 1
        weights = self._on_host() if self.cpu_offload else self._live
        kinds: tuple[list[str], list[str]] = [], []
        for name, tensor in weights.items():
            kinds[tensor.is_floating_point()].append(name)
        copied, averaged = ([self.averages[name] for name in names] for names in kinds)
        latest, current = ([weights[name] for name in names] for names in kinds)
        torch._foreach_lerp_(averaged, current, 1.0 - self.decay_at(self.updates))
        if copied:
            torch._foreach_copy_(copied, latest)

    def _on_host(self) -> dict[str, Tensor]:
        """The weights on the host. From a GPU they are copied into pinned memory, and the host waits once for all."""
        if not any(tensor.is_cuda for tensor in self._live.values()):
            return self._live
        if not self._staging:
            self._staging = {
                name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                for name, tensor in self._live.items()
            }
        for name, tensor in self._live.items():
            self._staging[name].copy_(tensor, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        copied.synchronize()
        return self._staging

    @torch.no_grad()
    def swap_in(self) -> None:
        """Load the averages into the module and set the trained weights aside."""
        if self._originals is None and self.averages and self._live:
            self._originals = [tensor.clone() for tensor in self._live.values()]
            self._write(self.averages.values())

    @torch.no_grad()
    def swap_out(self) -> None:
        """Load the trained weights back into the module."""
        if self._originals is not None:
            self._write(self._originals)
            self._originals = None

    @property
    def validates_both(self) -> bool:
        return self.validate_both and not self.validate_original_weights

    @property
    def is_swapped_in(self) -> bool:
        """Whether the module has the averages now."""
        return self._originals is not None

    @property
    def set_aside(self) -> dict[str, Tensor]:
        """The trained weights while the averages are in the module and both are to be validated; otherwise empty."""
        if self._originals is None or not self.validate_both:
            return {}
        return dict(zip(self._live, self._originals, strict=True))

    def _write(self, values: Iterable[Tensor]) -> None:
        for live, value in zip(self._live.values(), values, strict=True):
            live.copy_(value)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not self.validate_original_weights:
            self.swap_in()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.swap_out()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.swap_out()

    @torch.no_grad()
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the averages in the module, since they were validated and will be used."""
        if not self.validate_original_weights and self.updates:
            self._write(self.averages.values())

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        weights = checkpoint["state_dict"]
        if self._originals is not None:  # the module holds the averages right now
            weights = dict(zip(self._live, self._originals, strict=True))
        if self.saving_averages:
            checkpoint["state_dict"], checkpoint[RAW_KEY] = dict(self.averages), weights
        else:
            checkpoint["state_dict"], checkpoint[AVERAGED_KEY] = weights, dict(self.averages)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the averages. `DetectorModule` has moved the trained weights to `state_dict` before."""
        self.averages = dict(checkpoint.get(AVERAGED_KEY, {}))
        if not self.averages:
            logger.warning("The checkpoint was trained without EMA; starting the average from its weights")
