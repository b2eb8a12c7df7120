"""The learning-rate schedule: a warm-up, then steps or a cosine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LinearLR, LRScheduler, ReduceLROnPlateau, SequentialLR

from rtdetr_tool.errors import SpecError
from rtdetr_tool.spec.metric_names import VAL_LOSS, logged_name
from rtdetr_tool.spec.train import SCHEDULERS, TrainSpec
from rtdetr_tool.training.torch_classes import create, schedule_class


def build_schedule(train: TrainSpec, optimizer: torch.optim.Optimizer, total_steps: int) -> dict[str, Any]:
    """The schedule of a run with `total_steps` optimizer steps (0 if the schedule does not need them), for Lightning.

    Its keys are `scheduler`, `interval` and, for a schedule that follows a metric, `monitor`.
    """
    optim = train.optim
    if optim.lr_scheduler not in SCHEDULERS:
        return _schedule_of_torch(train, optimizer, total_steps)
    steps_per_epoch = total_steps / train.num_epochs
    schedule = StagedSchedule(
        optimizer,
        kind=optim.lr_scheduler,
        decay=optim.lr_decay,
        milestones=optim.lr_steps,
        step_size=optim.lr_step_size,
        warmup_steps=optim.warmup_steps or int(optim.warmup_epochs * steps_per_epoch),
        total_steps=total_steps,
        min_factor=optim.lr_min_factor,
        flat_steps=int(optim.lr_flat_epochs * steps_per_epoch),
        final_steps=int(optim.lr_final_epochs * steps_per_epoch),
    )
    return {"scheduler": schedule, "interval": "step"}


def _schedule_of_torch(train: TrainSpec, optimizer: torch.optim.Optimizer, total_steps: int) -> dict[str, Any]:
    optim = train.optim
    kind = schedule_class(optim.lr_scheduler)
    schedule = create("lr_scheduler_kwargs", kind, optimizer, optim.lr_scheduler_kwargs)
    warmup = optim.warmup_steps or int(optim.warmup_epochs * total_steps / train.num_epochs)
    follows_metric = isinstance(schedule, ReduceLROnPlateau)
    if warmup and (follows_metric or optim.lr_scheduler_interval == "epoch"):
        raise SpecError(
            f"train.optim.warmup_steps and warmup_epochs are not supported with lr_scheduler={optim.lr_scheduler}, "
            "unless it advances per step; set them to 0"
        )
    if follows_metric:
        monitor = logged_name(optim.lr_scheduler_monitor)
        if monitor == VAL_LOSS and not train.compute_val_loss:
            raise SpecError("train.optim.lr_scheduler_monitor: val/loss requires train.compute_val_loss=true")
        return {"scheduler": schedule, "interval": "epoch", "monitor": monitor, "frequency": train.validation_interval}
    if warmup:
        ramp = LinearLR(optimizer, 1 / warmup, total_iters=warmup - 1)
        schedule = SequentialLR(optimizer, [ramp, schedule], [warmup])
    return {"scheduler": schedule, "interval": optim.lr_scheduler_interval}


class StagedSchedule(LRScheduler):
    """`lr = initial * min(1, (step + 1) / warmup_steps) * decay ** (number of decays before this epoch)`.

    Depends only on optimizer step and epoch. `step()` follows every optimizer step. `start_epoch` sets the epoch, so
    that the decay stays right when a run resumes with another number of processes and thus other steps per epoch.

    Cosine: after the warm-up `min_factor + (1 - min_factor) * (1 + cos(pi * p)) / 2`, where p grows from 0 to 1 over
    the remaining steps of `total_steps`.

    FlatCosine (DEIM, arXiv:2412.04234): as Cosine, but the cosine begins after `flat_steps` and ends `final_steps`
    before the end, and the warm-up grows with the square of the step.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        kind: str = "MultiStep",
        decay: float = 0.1,
        milestones: Sequence[int] = (),
        step_size: int = 1,
        warmup_steps: int = 0,
        total_steps: int = 0,
        min_factor: float = 0.0,
        flat_steps: int = 0,
        final_steps: int = 0,
    ) -> None:
        if kind not in SCHEDULERS:
            expected = ", ".join(SCHEDULERS)
            raise SpecError(f"train.optim.lr_scheduler: {kind!r} is invalid; expected one of {expected}")
        self.kind, self.decay = kind, decay
        self.milestones, self.step_size = sorted(milestones), step_size
        self.warmup_steps, self.total_steps, self.min_factor = warmup_steps, total_steps, min_factor
        self.flat_steps, self.final_steps = flat_steps, final_steps
        self.epoch = 0
        super().__init__(optimizer)

    def factor(self, step: int, epoch: int) -> float:
        """The factor on the initial learning rates."""
        if self.kind == "Cosine":
            return self._warmup(step) * self._cosine(step, self.warmup_steps, self.total_steps)
        if self.kind == "FlatCosine":
            start, end = max(self.flat_steps, self.warmup_steps), self.total_steps - self.final_steps
            return self._warmup(step) ** 2 * self._cosine(step, start, end)
        decays = sum(epoch >= m for m in self.milestones) if self.kind == "MultiStep" else epoch // self.step_size
        return self._warmup(step) * self.decay**decays

    def _warmup(self, step: int) -> float:
        return min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps > 0 else 1.0

    def _cosine(self, step: int, start: int, end: int) -> float:
        progress = (step - start) / max(1, end - start)
        cosine = 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
        return self.min_factor + (1 - self.min_factor) * cosine

    def get_lr(self) -> list[float | Tensor]:
        factor = self.factor(self.last_epoch, self.epoch)  # torch's `last_epoch` counts optimizer steps here
        return [base * factor for base in self.base_lrs]

    def start_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Only the progress. The settings come from the spec, so a resumed run may change them."""
        return {"last_epoch": self.last_epoch, "epoch": self.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = self.last_epoch + 1
        self.start_epoch(state_dict["epoch"])
