"""Clip gradients with fused optimizers and sharded strategies, which Lightning does not support."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from rtdetr_tool.training.sharding import sharding_of
from rtdetr_tool.training.step_guard import guard_of


def clip_and_check(
    module: LightningModule, optimizer: torch.optim.Optimizer, value: float | None, algorithm: str | None
) -> None:
    """Clip the gradients of a module, and let its step guard check their norm.

    Lightning's own check refuses every fused optimizer, although bf16 has no loss scaling. With FSDP, only its own
    method knows the norm over all shards, and Lightning does not call it. DeepSpeed clips in its engine.
    """
    sharding = sharding_of(module.trainer.strategy)
    if sharding == "deepspeed":
        return
    limit = value if algorithm in (None, "norm") else None
    if sharding == "fsdp":
        sharded: Any = module.trainer.strategy.model
        norm = sharded.clip_grad_norm_(limit or math.inf)
    else:
        parameters = [parameter for parameter in module.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm([cast(Tensor, parameter.grad) for parameter in parameters])
        if limit:
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    guard_of(module).check_gradient(optimizer, norm)
    if not limit:
        module.clip_gradients(optimizer, value, algorithm)
