"""Batch norm over the images of all processes, on any device (torch's own works on GPUs only)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class SyncBatchNorm2d(nn.BatchNorm2d):
    """In training mode mean and variance are those of the whole batch across processes.

    Two passes (mean, then squared distance) keep the variance exact; gradients flow through both sums.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        x32 = x.float()
        axes, shape = (0, 2, 3), (1, -1, 1, 1)
        count = torch.full((1,), float(x.numel() // x.shape[1]), device=x.device)
        totals = all_reduce(torch.cat([x32.sum(axes), count]))
        count = totals[-1].detach()
        mean = totals[:-1] / count
        centred = x32 - mean.view(shape)
        variance = all_reduce(centred.square().sum(axes)) / count
        if self.track_running_stats and self.running_mean is not None:
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)


def synchronise_batch_norms(module: nn.Module) -> int:
    """Make every BatchNorm2d below `module` a synchronised one in place; how many there were. Names do not change."""
    norms = [child for child in module.modules() if type(child) is nn.BatchNorm2d]
    for norm in norms:
        norm.__class__ = SyncBatchNorm2d
    return len(norms)
