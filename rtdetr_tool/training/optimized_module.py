"""The optimizer steps of a Lightning module: parameter groups, learning rates, clipping, steps that are not finite."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any, cast

import torch
from torch import nn

from rtdetr_tool.losses.criterion import SetCriterion
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.spec import ExperimentSpec
from rtdetr_tool.training.callbacks.periodic_checkpoint import checkpoints_of
from rtdetr_tool.training.devices import resolve_precision
from rtdetr_tool.training.epoch_scores import ScoredModule
from rtdetr_tool.training.gradient_clipping import clip_and_check
from rtdetr_tool.training.optim import build_optimizer, parameter_groups
from rtdetr_tool.training.schedule import StagedSchedule, build_schedule
from rtdetr_tool.training.step_guard import StepGuard, guard_of, handle_non_finite

logger = logging.getLogger(__name__)


class OptimizedModule(ScoredModule):
    """A module that trains the parameters of `self.detector` as `train.optim` says.

    A subclass sets `model`, whose item `model` is the detector, `criterion`, and `vectors`, the names of the detector's
    vectors (`optim.vector_names`).
    """

    model: nn.ModuleDict
    criterion: SetCriterion
    vectors: Collection[str]

    def __init__(self, spec: ExperimentSpec) -> None:
        super().__init__(spec)
        self.guard: StepGuard | None = None  # while training

    @property
    def detector(self) -> Detector:
        return cast(Detector, self.model["model"])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of the optimizer."""
        optim = self.spec.train.optim
        return parameter_groups(
            self.detector,
            lr=optim.lr,
            lr_backbone=optim.lr_backbone,
            weight_decay=optim.weight_decay,
            linear_proj_names=self.spec.model.linear_proj_names,
            lr_linear_proj_mult=optim.lr_linear_proj_mult,
            lr_layer_decay=optim.lr_layer_decay,
            lr_component_decay=optim.lr_component_decay,
            decay_vectors=optim.decay_vectors,
            vectors=self.vectors,
        )

    def configure_optimizers(self) -> Any:
        train, optim = self.spec.train, self.spec.train.optim
        groups = self.parameter_groups()
        fused = resolve_precision(train) != "fp16" and self.device.type in ("cpu", "cuda")
        optimizer = build_optimizer(
            optim.optimizer, groups, momentum=optim.momentum, fused=fused, keywords=optim.optimizer_kwargs
        )
        return {"optimizer": optimizer, "lr_scheduler": build_schedule(train, optimizer, self._total_steps())}

    def _total_steps(self) -> int:
        """Optimizer steps of the whole run, or 0 if the schedule does not need them or there is no trainer."""
        optim = self.spec.train.optim
        needed = optim.lr_scheduler in ("Cosine", "FlatCosine") or optim.warmup_epochs
        return int(self.trainer.estimated_stepping_batches) if needed and self._trainer is not None else 0

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        clip_and_check(self, optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_epoch_start(self) -> None:
        schedules = self.lr_schedulers()
        for schedule in schedules if isinstance(schedules, list) else [schedules]:
            if isinstance(schedule, StagedSchedule):
                before = schedule.get_last_lr()
                schedule.start_epoch(self.current_epoch)
                if self.spec.train.verbose and before != schedule.get_last_lr():
                    logger.info("Learning rate from epoch %d: %g", self.current_epoch, self._main_rate())

    def _main_rate(self) -> float:
        """The learning rate of the network without its backbone (or of the backbone if nothing else is trained)."""
        groups = cast(torch.optim.Optimizer, self.optimizers()).param_groups
        return float(next((group["lr"] for group in groups if group["name"].startswith("main")), groups[0]["lr"]))

    # Non-finite steps

    def on_train_start(self) -> None:
        self.guard = StepGuard(self.detector, self.criterion)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._handle_non_finite(guard_of(self).finish_step(optimizer))

    def on_train_epoch_end(self) -> None:
        self._handle_non_finite(guard_of(self).finish_epoch())

    def _handle_non_finite(self, what: str | None) -> None:
        saver = checkpoints_of(self.trainer)
        save = (lambda: saver.save_now(self.trainer)) if saver is not None else None
        handle_non_finite(self.trainer, self, what, self.spec.train.non_finite_loss, save)

    def on_train_end(self) -> None:
        guard_of(self).close()
