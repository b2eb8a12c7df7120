"""Decoder layers of which a sub-detector runs the first ones."""

from __future__ import annotations

from torch import nn


class FirstLayers(nn.Module):
    """The base class of decoders that predict with layer `eval_idx`, and of which `depth` can select fewer layers."""

    layers: nn.ModuleList
    eval_idx: int
    depth: int | None = None  # layers to run; None = all in training, otherwise those up to `eval_idx`

    @property
    def count(self) -> int:
        """The number of layers that run now."""
        if self.depth is not None:
            return self.depth
        return len(self.layers) if self.training else self.eval_idx + 1

    def run_first(self, count: int | None) -> None:
        """Run this number of layers from now on; None or all up to `eval_idx` = the whole decoder."""
        self.depth = None if count in (None, self.eval_idx + 1) else count
