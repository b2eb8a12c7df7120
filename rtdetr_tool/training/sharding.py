"""Strategies that shard a model over the processes, and the features that do not work with them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import Callback
from pytorch_lightning.strategies import DeepSpeedStrategy, FSDPStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils._pytree import tree_map_only

from rtdetr_tool.errors import SpecError
from rtdetr_tool.training.callbacks.ema import ExponentialMovingAverage
from rtdetr_tool.training.callbacks.periodic_checkpoint import PeriodicCheckpoint
from rtdetr_tool.training.callbacks.preemption import PreemptionSave

logger = logging.getLogger(__name__)

_KINDS: dict[str, type[Strategy]] = {"fsdp": FSDPStrategy, "deepspeed": DeepSpeedStrategy}
_FSDP_ON_CPU = (2, 15)  # the oldest version of PyTorch that we have seen work
_SHARDED_WEIGHTS = "no process has the whole weights to average; use ddp for train.enable_ema"
_FOLDERS = "its checkpoints are folders that only it can read; use Lightning's ModelCheckpoint to write them"


class SafeFSDP(FSDPStrategy):
    """FSDP that only resumes from weights and plain data, and that also runs on CPUs.

    Lightning's own reader executes the code in a pickle, and Lightning does not tell PyTorch that there is no GPU.
    """

    def _setup_model(self, model: nn.Module) -> nn.Module:
        if self.root_device.type != "cpu":
            return super()._setup_model(model)
        return FullyShardedDataParallel(
            model, sharding_strategy=self.sharding_strategy, device_id=self.root_device, **self.kwargs
        )

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """The state with a storage per tensor: Lightning resumes by reading the whole storage of each tensor, and on
        the CPU all of them are views of one."""
        state: dict[str, Tensor] = tree_map_only(Tensor, _with_own_storage, super().optimizer_state(optimizer))
        return state

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        self.checkpoint_io.load_checkpoint(checkpoint_path)
        return super().load_checkpoint(checkpoint_path, weights_only)


def _with_own_storage(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def sharding_of(strategy: str | Strategy) -> str | None:
    """`fsdp` or `deepspeed` for such a strategy or Lightning's name of one (`deepspeed_stage_2`), otherwise None."""
    for kind, strategy_type in _KINDS.items():
        if strategy.startswith(kind) if isinstance(strategy, str) else isinstance(strategy, strategy_type):
            return kind
    return None


def callbacks_for(strategy: str | Strategy, callbacks: Sequence[Callback]) -> list[Callback]:
    """The callbacks that work with a strategy. Logs which of them do not, and why."""
    kept = []
    for callback in callbacks:
        reason = next((why for kind, why in _unsupported(strategy).items() if isinstance(callback, kind)), None)
        if reason is None:
            kept.append(callback)
        else:
            logger.warning("Skipping %s with %s: %s", type(callback).__name__, sharding_of(strategy), reason)
    return kept


def check_skipping(strategy: str | Strategy, non_finite_loss: str) -> None:
    """Raise SpecError if steps are to be skipped and the strategy cannot do that."""
    if sharding_of(strategy) == "deepspeed" and non_finite_loss == "skip":
        raise SpecError("train.non_finite_loss: skip is not supported by DeepSpeed, which hides gradients; use stop")


def check_sharding_on_cpu(strategy: str | Strategy, precision: str) -> None:
    """Raise SpecError if FSDP cannot train on a CPU.

    PyTorch 2.11 crashes there when it gathers the weights for a checkpoint, and Lightning's mixed precision for FSDP is
    CUDA's.
    """
    if sharding_of(strategy) != "fsdp":
        return
    if tuple(map(int, torch.__version__.split(".")[:2])) < _FSDP_ON_CPU:
        raise SpecError(
            f"train.distributed_strategy: fsdp is not supported on CPUs with PyTorch {torch.__version__}, which "
            f"crashes when it saves a checkpoint; use ddp, or PyTorch {'.'.join(map(str, _FSDP_ON_CPU))} or later"
        )
    if precision != "fp32":
        raise SpecError(f"train.precision: {precision} is not supported with fsdp on a CPU; use fp32")


def _unsupported(strategy: str | Strategy) -> dict[type[Callback], str]:
    kind = sharding_of(strategy)
    if kind is None:
        return {}
    if kind == "deepspeed" or getattr(strategy, "_state_dict_type", "full") == "sharded":
        return {ExponentialMovingAverage: _SHARDED_WEIGHTS, PeriodicCheckpoint: _FOLDERS, PreemptionSave: _FOLDERS}
    return {ExponentialMovingAverage: _SHARDED_WEIGHTS}
