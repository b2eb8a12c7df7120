"""DINOv2 (Oquab et al. 2023, arXiv:2304.07193) with windowed attention and learned position embeddings.

Shape legend: h, w grid of patches, g side of the grid of the embeddings, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rtdetr_tool.models.backbones.vit_block import DINOV2
from rtdetr_tool.models.backbones.windowed_vit import WindowedVit
from rtdetr_tool.ops.resize import resize_bicubic


class WindowedDinov2(WindowedVit):
    """Arguments as for `WindowedVit`, and:

    Args:
        grid: side of the square of position embeddings (g), in patches; they are interpolated to other sizes.
    """

    mask_token: nn.Parameter | None  # of DINOv2's pretraining

    def __init__(self, width: int = 384, depth: int = 12, num_heads: int = 6, grid: int = 24, **options: Any) -> None:
        super().__init__(width, depth, num_heads, DINOV2, **options)
        self.grid = grid
        self.mask_token = nn.Parameter(torch.zeros(1, width), requires_grad=False)
        self.position = nn.Parameter(torch.empty(1, 1 + grid * grid, width))  # class token, then rows of patches
        self._tables: dict[tuple[int, int], Tensor] | None = None  # positions by size, cached by deployed copies only
        self.reset_parameters()
        nn.init.trunc_normal_(self.position, std=0.02)

    def _with_positions(self, patches: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        positions = self._positions(height, width)
        return patches + positions[:, 1:], self.cls_token + positions[:, :1]

    def _positions(self, height: int, width: int) -> Tensor:
        """Embeddings [1, 1 + h * w, D] for a grid of this size."""
        if (height, width) == (self.grid, self.grid):
            return self.position
        if self._tables is None:
            return resize_positions(self.position, height, width)
        if (height, width) not in self._tables:
            self._tables[height, width] = resize_positions(self.position, height, width)
        return self._tables[height, width]

    def resize_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Also resizes position embeddings. Blocks without them are a DINOv3's, which rely on rotations."""
        if "position" not in weights and "registers" in weights:
            return {}
        weights = super().resize_weights(weights)
        position = weights.get("position")
        if position is not None and position.shape[1] != self.position.shape[1]:
            weights["position"] = resize_positions(position, self.grid, self.grid)
        return weights

    def fold_for_inference(self) -> None:
        super().fold_for_inference()
        self.mask_token = None
        self._tables = {}


def resize_positions(position: Tensor, height: int, width: int) -> Tensor:
    """Resize embeddings [1, 1 + g * g, D] of a square grid to height x width; the class token's is unchanged."""
    side = math.isqrt(int(position.shape[1]) - 1)
    patches: Tensor = position[:, 1:].unflatten(1, (side, side))
    resized = resize_bicubic(patches, height, width).flatten(1, 2).to(position.dtype)
    return torch.cat([position[:, :1], resized], dim=1)
