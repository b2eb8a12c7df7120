"""Steps whose loss or gradient is not finite: kept away from the weights, described, and counted.

A loss that is not finite is known when the forward pass is done; the flag travels to the host while the backward pass
is queued, and is read before the optimizer's step. The norm of the gradient is known only at the end of the backward
pass, too late to wait for: the fused optimizers look at it themselves (`found_inf`), and the host hears of it one step
later. In both cases all processes decide alike: the flags are exchanged, the gradients are by then the same.
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
from rtdetr_tool.training.checkpointing import checkpoints_of
from rtdetr_tool.training.distributed import broadcast_object, gather_objects, world_size

logger = logging.getLogger(__name__)

MOST_IN_A_ROW = 50  # skipped steps after which a run is not worth going on with
_SHOWN = 8  # images named per batch


class StepGuard:
    """Watches the steps of a module: `begin` and `judge` for each batch, then `settle` and `watch_gradient` per step.

    `signal` is what this process was asked to end with (0: nothing); `agreed_signal` what any process was, as of the
    latest step. `skipped` counts the steps that left the weights as they were.
    """

    def __init__(self, detector: nn.Module, criterion: nn.Module) -> None:
        self.signal = self.agreed_signal = 0
        self.skipped = self.in_a_row = 0
        self._statistics = [kind for kind in _running_statistics(detector) if kind]
        self._before = [[tensor.clone() for tensor in kind] for kind in self._statistics]
        self._judged: list[Callable[[], list[int]]] = []  # flags of the batches of this step, on their way to the host
        self._gradient: Tensor | None = None  # of the step before, on the device
        self._outputs: tuple[Tensor, Tensor, Sequence[Target]] | None = None
        self._seen: list[_Seen] = []  # in this step, in the one before, and in the one to blame
        self._seen_before: list[_Seen] = []
        self._blamed: list[_Seen] = []
        self._hook = criterion.register_forward_pre_hook(self._look)

    def close(self) -> None:
        self._hook.remove()

    def begin(self) -> None:
        """Before a forward pass: remember the running statistics, unless gradients are being accumulated."""
        if not self._judged:
            for before, now in zip(self._before, self._statistics, strict=True):
                torch._foreach_copy_(before, now)

    def _look(self, criterion: nn.Module, inputs: tuple[Predictions, Sequence[Target]]) -> None:
        predictions, targets = inputs
        self._outputs = (predictions.logits.detach(), predictions.boxes.detach(), targets)

    def judge(self, loss: Tensor) -> Tensor:
        """Whether the loss of a batch is finite, on its device."""
        finite = torch.isfinite(loss.detach())
        gradient = self._gradient if self._gradient is not None else torch.zeros_like(finite)
        flags = torch.stack([(~finite).int(), gradient.int(), torch.full_like(finite, self.signal, dtype=torch.int32)])
        if world_size() > 1:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        self._judged.append(_on_its_way(flags))
        self._seen.append(_Seen(loss.detach(), *self._outputs))
        return finite

    def settle(self, optimizer: torch.optim.Optimizer) -> str | None:
        """Before the optimizer's step: what was not finite, `loss` or `gradient` (of the step before), or None.

        After a loss that is not finite the optimizer finds no gradients, and the running statistics are as before.
        """
        flags = [flag() for flag in self._judged]
        loss, gradient, self.agreed_signal = (max(of_kind) for of_kind in zip(*flags, strict=True))
        self._judged, self._gradient = [], None
        self._blamed = self._seen if loss else self._seen_before
        self._seen_before, self._seen = self._seen, []
        if loss:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
            for before, now in zip(self._before, self._statistics, strict=True):
                torch._foreach_copy_(now, before)
        return self._count(bool(loss), bool(gradient))

    def watch_gradient(self, optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
        """Make a step whose gradient is not finite do nothing.

        Only fused optimizers can; the other one is that of fp16, where loss scaling leaves such steps out by itself: it
        looks for its scale that way.
        """
        if optimizer.defaults.get("fused"):
            self._gradient = ~torch.isfinite(norm)
            optimizer.found_inf = self._gradient.float()

    def settle_last(self) -> str | None:
        """At the end of an epoch: `gradient` if that of the latest step was not finite."""
        gradient, self._gradient = self._gradient, None
        self._blamed = self._seen_before
        return self._count(False, True) if gradient is not None and bool(gradient) else None

    def _count(self, loss: bool, gradient: bool) -> str | None:
        self.skipped += loss + gradient
        self.in_a_row = self.in_a_row + 1 if loss or gradient else 0
        return "loss" if loss else "gradient" if gradient else None

    def describe(self) -> str:
        """The images of the step that `settle` complained of and the largest outputs of the network for them."""
        return "; ".join(part for parts in _shared([seen.describe() for seen in self._blamed]) for part in parts)


@dataclass
class _Seen:
    """A batch: its loss, the outputs (logits [S, B, Q, C]; boxes [S, B, Q, 4], cxcywh 0..1) and targets."""

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


def answer(trainer: Trainer, pl_module: LightningModule, found: str | None, policy: str) -> None:
    """Skip or stop, as `train.non_finite_loss` says, after a step of which `found` was not finite."""
    guard = pl_module.guard
    if found is None:
        return
    step = trainer.global_step - (found == "gradient")
    rate = ", ".join(f"{group['name']} {group['lr']:g}" for group in trainer.optimizers[0].param_groups)
    text = f"The {found} of step {step} (epoch {trainer.current_epoch}) is not finite: {guard.describe()}; "
    text += f"learning rates {rate}."
    if policy == "skip" and guard.in_a_row < MOST_IN_A_ROW:
        logger.warning("%s The step is left out (train.non_finite_loss: skip); %d so far.", text, guard.skipped)
        return
    saver = checkpoints_of(trainer)
    kept = ""
    if not broadcast_object(is_finite(pl_module)):
        kept = " The weights themselves are not finite, so nothing is saved."
    elif saver:
        kept = f" The weights are as before it, saved in {saver.save_now(trainer)}."
    why = f" {guard.in_a_row} steps in a row were left out." if policy == "skip" else ""
    raise RtdetrError(
        f"{text}{why}{kept} Lower train.optim.lr, add train.optim.warmup_steps, keep train.clip_grad_norm above 0, use "
        "bf16 or fp32 instead of fp16, or leave such steps out with train.non_finite_loss: skip. The same command goes "
        "on from there."
    )


def is_finite(module: nn.Module) -> bool:
    """Whether all weights and statistics of a module are finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in module.state_dict().values())


def _running_statistics(detector: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """What the norms of a network count in training: floating buffers, and integer ones."""
    norms = [m for m in detector.modules() if getattr(m, "track_running_stats", False) and m.running_mean is not None]
    floating = [tensor for norm in norms for tensor in (norm.running_mean, norm.running_var)]
    return floating, [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]


def _on_its_way(flags: Tensor) -> Callable[[], list[int]]:
    """Start the copy to the host; calling the result waits for it, and not for what is queued afterwards."""
    if not flags.is_cuda:
        return flags.tolist
    host = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True).copy_(flags, non_blocking=True)
    there = torch.cuda.Event()
    there.record()

    def wait() -> list[int]:
        there.synchronize()
        return host.tolist()

    return wait


def _largest(values: Tensor) -> str:
    finite = values[torch.isfinite(values)]
    largest = f"{finite.abs().max().item():g}" if finite.numel() else "none"
    bad = values.numel() - finite.numel()
    return f"{largest} ({bad} of {values.numel()} are not finite)" if bad else largest


def _shared(parts: list[str]) -> list[list[str]]:
    """Those of all processes, on all of them."""
    return broadcast_object(gather_objects([parts]))
