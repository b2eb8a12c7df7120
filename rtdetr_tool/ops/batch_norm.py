"""Batch norms: frozen, counted together, and folded into convolutions."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FixedBatchNorm2d(nn.Module):
    """A batch norm with constant statistics, scale and shift, stored under the names of `BatchNorm2d`.

    It computes in the dtype of its input, because float32 constants would take everything after it out of mixed
    precision. Forward is one operator that keeps nothing of its input for the backward pass.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = norm.eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone())
        self._constants: _Constants | None = None

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self._scale_and_shift(x.dtype)
        if not torch.is_grad_enabled():
            return torch.addcmul(shift, x, scale)
        output: Tensor = _ScaleAndShift.apply(x, scale, shift)
        return output

    def _scale_and_shift(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """[C, 1, 1] each, computed again only after one of the buffers has changed."""
        buffers = (self.weight, self.bias, self.running_mean, self.running_var)
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or any(b.is_inference() for b in buffers):
            return self._compute(dtype)
        constants = self._constants
        if constants is None or not constants.are_for(buffers, dtype):
            with torch.inference_mode(False), torch.no_grad():  # made during inference, they must serve training too
                versions = tuple(buffer._version for buffer in buffers)
                constants = self._constants = _Constants(buffers, versions, *self._compute(dtype))
        return constants.scale, constants.shift

    def _compute(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        shift = self.bias - self.running_mean * scale
        return scale.to(dtype)[:, None, None], shift.to(dtype)[:, None, None]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_constants": None}  # copies and other processes compute their own


class _ScaleAndShift(torch.autograd.Function):
    """x * scale + shift with constants. PyTorch's own backward pass of `addcmul` has one kernel more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return torch.addcmul(shift, x, scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (scale,) = ctx.saved_tensors
        return gradients[0] * scale, None, None


class _Constants(NamedTuple):
    """Scale and shift of a fixed norm, and the buffers (by identity and version) that they were computed from."""

    buffers: tuple[Tensor, ...]
    versions: tuple[int, ...]
    scale: Tensor
    shift: Tensor

    def are_for(self, buffers: tuple[Tensor, ...], dtype: torch.dtype) -> bool:
        return self.scale.dtype == dtype and all(
            now is before and now._version == version
            for now, before, version in zip(buffers, self.buffers, self.versions, strict=True)
        )


class UncountedBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm2d that leaves `num_batches_tracked` to its owner, who adds to all counters of a network at once.

    The counter is part of checkpoints, but only a norm with `momentum=None` computes with it. On a GPU, each norm that
    counts by itself costs a kernel launch in every step.
    """

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        output = F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum or 0.0,
            self.eps,
        )
        if output.requires_grad and _is_eager_on_cpu(x) and x.is_contiguous(memory_format=torch.channels_last):
            output.register_hook(_in_channels_last)
        return output


def _is_eager_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def _in_channels_last(gradient: Tensor) -> Tensor:
    """The gradient in the layout of the norm's input.

    Behind a concatenation it is a part of a larger tensor, with which PyTorch's backward pass of a batch norm takes 10
    to 20 times as long on a CPU.
    """
    return gradient.contiguous(memory_format=torch.channels_last)


def count_together(module: nn.Module) -> None:
    """Make the batch norms in `module` leave their counters to `count_batch`, in place; SyncBatchNorm counts itself."""
    for norm in module.modules():
        if type(norm) is nn.BatchNorm2d and norm.momentum is not None and norm.track_running_stats:
            norm.__class__ = UncountedBatchNorm2d


def count_batch(module: nn.Module) -> None:
    """Add one batch to the counter of every norm of `count_together` that is in training mode."""
    norms = (norm for norm in module.modules() if isinstance(norm, UncountedBatchNorm2d) and norm.training)
    counters = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    if counters:
        torch._foreach_add_(counters, 1)


def fix_batch_norms(module: nn.Module) -> int:
    """Replace every BatchNorm2d in `module` with a FixedBatchNorm2d, in place; returns the number of norms."""
    count = 0
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d) and type(child) in (nn.BatchNorm2d, UncountedBatchNorm2d):
            setattr(module, name, FixedBatchNorm2d(child))
            count += 1
        else:
            count += fix_batch_norms(child)
    return count


def scale_and_shift(norm: nn.BatchNorm2d | FixedBatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift of each channel by a batch norm in eval mode."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("the batch norm has no running statistics, so it cannot be folded into a scale and shift")
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


@torch.no_grad()
def fold_into(conv: nn.Conv2d, norm: nn.BatchNorm2d | FixedBatchNorm2d) -> None:
    """Fold `norm` (in eval mode) into the weights of `conv`."""
    scale, bias = scale_and_shift(norm)
    if conv.bias is not None:
        bias = bias + conv.bias * scale
    conv.weight = nn.Parameter(conv.weight * scale[:, None, None, None], requires_grad=False)
    conv.bias = nn.Parameter(bias, requires_grad=False)
