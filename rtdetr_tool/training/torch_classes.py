"""Optimizers and schedules of torch by their dotted name, with keyword arguments from the spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import lr_scheduler

from rtdetr_tool.errors import SpecError
from rtdetr_tool.spec.train import OPTIMIZER_PREFIX, SCHEDULER_PREFIX, SCHEDULERS, OptimSpec


def check_classes(optim: OptimSpec) -> None:
    """SpecError if a dotted name is not a class of torch."""
    if optim.optimizer.startswith(OPTIMIZER_PREFIX):
        optimizer_class(optim.optimizer)
    if optim.lr_scheduler not in SCHEDULERS:
        schedule_class(optim.lr_scheduler)


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class of a name such as `torch.optim.RAdam`."""
    kind = getattr(torch.optim, name.removeprefix(OPTIMIZER_PREFIX), None)
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer:
        return kind
    raise SpecError(
        f"train.optim.optimizer: {name!r} is invalid; expected AdamW, SGD or an optimizer of torch, such as "
        "torch.optim.RAdam"
    )


def schedule_class(name: str) -> type[Any]:
    """The class of a name such as `torch.optim.lr_scheduler.OneCycleLR`."""
    kind = getattr(lr_scheduler, name.removeprefix(SCHEDULER_PREFIX), None)
    kinds = (lr_scheduler.LRScheduler, lr_scheduler.ReduceLROnPlateau)
    if isinstance(kind, type) and issubclass(kind, kinds) and kind is not lr_scheduler.LRScheduler:
        return kind
    raise SpecError(
        f"train.optim.lr_scheduler: {name!r} is invalid; expected {', '.join(SCHEDULERS)} or a schedule of torch, such "
        "as torch.optim.lr_scheduler.OneCycleLR"
    )


def create(field: str, kind: type[Any], target: Any, keywords: Mapping[str, Any]) -> Any:
    """`kind(target, **keywords)`; SpecError that names the field with the keywords if it does not accept them."""
    given = {name: tuple(value) if name == "betas" else value for name, value in keywords.items()}
    try:
        return kind(target, **given)
    except (TypeError, ValueError) as error:
        raise SpecError(f"train.optim.{field}: {dict(keywords)} is invalid for {kind.__name__}: {error}") from None
