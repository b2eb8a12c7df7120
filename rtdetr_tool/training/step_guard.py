"""Keep steps with a non-finite loss or gradient away from the weights, and report them.

The loss is known after the forward pass. Its flag travels to the host while the backward pass is queued and is read
before the optimizer step. The gradient norm is known at the end of the backward pass, too late to wait for: fused
optimizers check it on the device (`found_inf`), and the host reads the flag one step later. All processes decide alike,
because the flags of the loss are exchanged and the gradients are the same on all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn

from rtdetr_tool.errors import RtdetrError
from rtdetr_tool.ops.structures import Predictions, Target
from rtdetr_tool.training.distributed import broadcast_object, gather_objects, world_size

logger = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 50  # then the run is stopped even with `skip`
_SHOWN = 8  # images named per batch


class StepGuard:
    """Checks the steps of a module.

    Call `begin` and `check_loss` for each batch, then `finish_step` and `check_gradient` for each optimizer step.
    `signal` is the signal this process received (0: none), `agreed_signal` the one that any process had received by the
    latest step. `skipped` counts the steps that left the weights unchanged.
    """

    def __init__(self, detector: nn.Module, criterion: nn.Module) -> None:
        self.signal = self.agreed_signal = 0
        self.skipped = self.in_a_row = 0
        self._statistics = [tensors for tensors in _running_statistics(detector) if tensors]
        self._saved_statistics = [[tensor.clone() for tensor in tensors] for tensors in self._statistics]
        self._pending: list[Callable[[], list[int]]] = []  # flags of this step's batches, being copied to the host
        self._gradient: Tensor | None = None  # whether the previous step's gradient was not finite, on the device
        self._outputs: tuple[Tensor, Tensor, Sequence[Target]] | None = None
        self._batches: list[_BatchRecord] = []  # of this step, the previous step, and the step to report
        self._previous_batches: list[_BatchRecord] = []
        self._reported_batches: list[_BatchRecord] = []
        self._hook = criterion.register_forward_pre_hook(self._remember_outputs)

    def close(self) -> None:
        self._hook.remove()

    def begin(self) -> None:
        """Call before a forward pass. Saves the running statistics, unless gradients are being accumulated."""
        if not self._pending:
            for saved, current in zip(self._saved_statistics, self._statistics, strict=True):
                torch._foreach_copy_(saved, current)

    def _remember_outputs(self, criterion: nn.Module, inputs: tuple[Predictions, Sequence[Target]]) -> None:
        predictions, targets = inputs
        self._outputs = (predictions.logits.detach(), predictions.boxes.detach(), targets)

    def check_loss(self, loss: Tensor) -> Tensor:
        """Whether the loss of a batch is finite, as a tensor on its device."""
        finite = torch.isfinite(loss.detach())
        gradient = self._gradient if self._gradient is not None else torch.zeros_like(finite)
        flags = torch.stack([(~finite).int(), gradient.int(), torch.full_like(finite, self.signal, dtype=torch.int32)])
        if world_size() > 1:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        self._pending.append(_copy_to_host(flags))
        assert self._outputs is not None, "the criterion was not called"
        self._batches.append(_BatchRecord(loss.detach(), *self._outputs))
        return finite

    def finish_step(self, optimizer: torch.optim.Optimizer) -> str | None:
        """Call before the optimizer step. Returns what is not finite: `loss`, `gradient` (of the previous step), None.

        After a non-finite loss, the gradients are cleared and the running statistics restored.
        """
        flags = [flag() for flag in self._pending]
        loss, gradient, self.agreed_signal = (max(of_kind) for of_kind in zip(*flags, strict=True))
        self._pending, self._gradient = [], None
        self._reported_batches = self._batches if loss else self._previous_batches
        self._previous_batches, self._batches = self._batches, []
        if loss:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
            for saved, current in zip(self._saved_statistics, self._statistics, strict=True):
                torch._foreach_copy_(current, saved)
        return self._count(bool(loss), bool(gradient))

    def check_gradient(self, optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
        """Turn the optimizer step into a no-op if the gradient norm is not finite.

        Only fused optimizers support this. The other optimizers are used with fp16, whose loss scaling skips such steps
        itself while it searches for its scale.
        """
        if optimizer.defaults.get("fused"):
            self._gradient = ~torch.isfinite(norm)
            optimizer.found_inf = self._gradient.float()  # type: ignore[attr-defined]  # read by fused kernels

    def finish_epoch(self) -> str | None:
        """Call at the end of an epoch. Returns `gradient` if that of the latest step was not finite."""
        gradient, self._gradient = self._gradient, None
        self._reported_batches = self._previous_batches
        return self._count(False, True) if gradient is not None and bool(gradient) else None

    def _count(self, loss: bool, gradient: bool) -> str | None:
        self.skipped += loss + gradient
        self.in_a_row = self.in_a_row + 1 if loss or gradient else 0
        return "loss" if loss else "gradient" if gradient else None

    def describe(self) -> str:
        """The images of the reported step, and the largest outputs of the network for them."""
        descriptions = [batch.describe() for batch in self._reported_batches]
        return "; ".join(part for parts in broadcast_object(gather_objects([descriptions])) for part in parts)


@dataclass
class _BatchRecord:
    """A batch: its loss, outputs (logits [S, B, Q, C]; boxes [S, B, Q, 4], cxcywh 0..1) and targets."""

    loss: Tensor
    logits: Tensor
    boxes: Tensor
    targets: Sequence[Target]

    def describe(self) -> str:
        images = [f"{target.image_id} ({target.path})" for target in self.targets]
        more = f" and {len(images) - _SHOWN} more" if len(images) > _SHOWN else ""
        return (
            f"loss {self.loss.item():g}, images {', '.join(images[:_SHOWN])}{more}, "
            f"largest logit {_largest(self.logits)}, largest box value {_largest(self.boxes)}"
        )


def guard_of(pl_module: LightningModule) -> StepGuard:
    """The guard of a `DetectorModule` that is being trained."""
    guard = pl_module.guard
    assert isinstance(guard, StepGuard), "the module is not being trained"
    return guard


def handle_non_finite(
    trainer: Trainer, pl_module: LightningModule, what: str | None, policy: str, save: Callable[[], object] | None
) -> None:
    """Skip the step or stop the run (`train.non_finite_loss`) if `what`, the loss or gradient, was not finite.

    `save` writes a checkpoint and returns its path.
    """
    if what is None:
        return
    guard = guard_of(pl_module)
    step = trainer.global_step - (what == "gradient")
    rates = ", ".join(f"{group['name']} {group['lr']:g}" for group in trainer.optimizers[0].param_groups)
    text = f"The {what} of step {step} (epoch {trainer.current_epoch}) is not finite: {guard.describe()}; "
    text += f"learning rates {rates}."
    if policy == "skip" and guard.in_a_row < MAX_SKIPPED_IN_A_ROW:
        logger.warning("%s Skipping this step (train.non_finite_loss: skip); %d skipped so far.", text, guard.skipped)
        return
    saved = ""
    if not broadcast_object(is_finite(pl_module)):
        saved = " The weights themselves are not finite, so no checkpoint was saved."
    elif save is not None:
        saved = f" The weights from before this step are saved in {save()}."
    skipped = f" {guard.in_a_row} steps in a row were skipped." if policy == "skip" else ""
    raise RtdetrError(
        f"{text}{skipped}{saved} Lower train.optim.lr, add train.optim.warmup_steps, keep train.clip_grad_norm above "
        "0, use bf16 or fp32 instead of fp16, or skip such steps with train.non_finite_loss: skip. Then run the same "
        "command again to resume."
    )


def is_finite(module: nn.Module) -> bool:
    """Whether all weights and buffers of a module are finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in module.state_dict().values())


def _running_statistics(detector: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The buffers that norms update in training: floating-point ones, and integer ones."""
    floating, integer = [], []
    for module in detector.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
            floating += [tensor for tensor in (module.running_mean, module.running_var) if tensor is not None]
            integer += [module.num_batches_tracked] if module.num_batches_tracked is not None else []
    return floating, integer


def _copy_to_host(flags: Tensor) -> Callable[[], list[int]]:
    """Start copying to the host. Calling the result waits for the copy, but not for work queued after it."""
    if not flags.is_cuda:
        return flags.tolist
    host = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True).copy_(flags, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> list[int]:
        copied.synchronize()
        return host.tolist()

    return wait


def _largest(values: Tensor) -> str:
    finite = values[torch.isfinite(values)]
    largest = f"{finite.abs().max().item():g}" if finite.numel() else "none"
    bad = values.numel() - finite.numel()
    return f"{largest} ({bad} of {values.numel()} are not finite)" if bad else largest
