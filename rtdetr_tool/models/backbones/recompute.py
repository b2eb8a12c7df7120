"""Activation checkpointing that updates the statistics of batch norms only once per batch."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_with_recompute(module: nn.Module, *inputs: Any, recompute: bool) -> Tensor:
    """`module(*inputs)`; with `recompute` its activations are recomputed in the backward pass instead of stored.

    A compiled graph updates statistics in its forward part only, so there is nothing to keep.
    """
    output: Tensor
    if recompute and torch.compiler.is_compiling():
        output = checkpoint(module, *inputs, use_reentrant=False)
    elif recompute:
        contexts = nullcontext(), _FrozenStatistics(module)
        output = checkpoint(module, *inputs, use_reentrant=False, context_fn=lambda: contexts)
    else:
        output = module(*inputs)
    return output


class _FrozenStatistics:
    """Keeps the running statistics of batch norms unchanged during the recomputation, the second pass over a batch."""

    def __init__(self, module: nn.Module) -> None:
        self.norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.kept: list[tuple[float | None, Tensor | None]] = []

    def __enter__(self) -> None:
        self.kept = [(n.momentum, None if (c := n.num_batches_tracked) is None else c.clone()) for n in self.norms]
        for norm in self.norms:
            norm.momentum = 0.0

    def __exit__(self, *exception: object) -> None:
        for norm, (momentum, count) in zip(self.norms, self.kept, strict=True):
            norm.momentum = momentum
            if count is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)
