"""Batch norm over the images of all processes, on any device (torch's SyncBatchNorm needs GPUs)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from rtdetr_tool.ops.batch_norm import UncountedBatchNorm2d


class SyncBatchNorm2d(nn.BatchNorm2d):
    """In training mode, mean and variance are those of the whole batch over all processes.

    Two passes (mean, then squared distance) keep the variance exact. Gradients flow through both sums.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        x32 = x.float()
        axes, shape = (0, 2, 3), (1, -1, 1, 1)
        count = torch.full((1,), float(x.numel() // x.shape[1]), device=x.device)
        totals = all_reduce(torch.cat([x32.sum(axes), count]))
        count = totals[-1].detach()
        mean = totals[:-1] / count
        centered = x32 - mean.view(shape)
        variance = all_reduce(centered.square().sum(axes)) / count
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * (count / (count - 1)), momentum)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        output: Tensor = centered * scale.view(shape) + self.bias.view(shape)
        return output.to(x.dtype)


def sync_batch_norms(module: nn.Module) -> int:
    """Replace every BatchNorm2d of `module` in place, keeping parameter names. Returns their number."""
    norms = [child for child in module.modules() if type(child) in (nn.BatchNorm2d, UncountedBatchNorm2d)]
    for norm in norms:
        norm.__class__ = SyncBatchNorm2d
    return len(norms)
