"""DINOv3 (Siméoni et al. 2025, arXiv:2508.10104) with windowed attention: positions are rotations of queries and keys.

The rotations depend on the place of a patch relative to the whole image, so windows and other sizes need no weights of
their own. Class token and registers are not rotated.

Shape legend: B batch, n windows per side, h, w grid of patches, R registers, d width of a head,
L = 1 + R + (h/n)(w/n) tokens of a window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rtdetr_tool.models.backbones.vit_block import Block, BlockOptions, Rotation
from rtdetr_tool.models.backbones.windowed_vit import WindowedVit, split_windows
from rtdetr_tool.ops.layers import modules_of_type

_TEMPERATURE = 100.0  # the wavelengths are half an image and up to nearly this number of times more

_TableKey = tuple[int, int, int, torch.device]  # height and width of the grid, windows per side, device


class WindowedDinov3(WindowedVit):
    """Arguments as for `WindowedVit`, and:

    Args:
        gated: blocks have a gated MLP, as in the `plus` models.
    """

    def __init__(
        self,
        width: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        gated: bool = False,
        num_registers: int = 4,
        **options: Any,
    ) -> None:
        blocks = BlockOptions(eps=1e-5, qkv_bias=False, gated=gated, scale=1e-5)
        super().__init__(width, depth, num_heads, blocks, num_registers=num_registers, **options)
        self.head_width = width // num_heads
        self._tables: dict[_TableKey, tuple[Rotation, Rotation]] | None = None  # of deployed copies only
        self.reset_parameters()

    def _rotations(self, height: int, width: int) -> list[Rotation]:
        within, across = self._window_rotations(height, width)
        return [within if block.merge == 1 else across for block in modules_of_type(self.blocks, Block)]

    def _window_rotations(self, height: int, width: int) -> tuple[Rotation, Rotation]:
        """Rotations in a windowed block, [n * n, 1, L, d], and in a global one, [1, 1, n * n * L, d]."""
        if self._tables is None:
            return self._computed_rotations(height, width, self.num_windows)
        key = (height, width, self.num_windows, self.cls_token.device)
        if key not in self._tables:
            with torch.inference_mode(False):  # a later pass may compute gradients
                self._tables[key] = self._computed_rotations(height, width, self.num_windows)
        return self._tables[key]

    @torch.no_grad()
    def _computed_rotations(self, height: int, width: int, windows: int) -> tuple[Rotation, Rotation]:
        angles = patch_angles(height, width, self.head_width, self.cls_token.device)
        angles = split_windows(angles[None], height, width, windows)  # [n * n, L - 1 - R, d]
        angles = F.pad(angles, (0, 0, 1 + self.num_registers, 0))[:, None]  # [n * n, 1, L, d]
        sine = angles.sin()
        sine[..., : self.head_width // 2].neg_()
        within = Rotation(angles.cos(), sine)
        return within, Rotation(*(table.reshape(1, 1, -1, self.head_width) for table in within))

    def resize_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Without those of a DINOv2, whose blocks have the same shapes, but rely on its position embeddings."""
        return {} if "position" in weights else super().resize_weights(weights)

    def fold_for_inference(self) -> None:
        super().fold_for_inference()
        self._tables = {}


def patch_angles(height: int, width: int, head_width: int, device: torch.device | str = "cpu") -> Tensor:
    """Angles [h * w, d] in radians of each channel of a head, for the centers of patches.

    The center is -1..1 in each direction. Each half of the channels has d/4 angles for the row and d/4 for the column.
    """
    exponents = torch.arange(head_width // 4, dtype=torch.float32, device=device) * (4 / head_width)
    frequencies = 2 * math.pi / _TEMPERATURE**exponents
    rows, columns = (
        ((torch.arange(side, dtype=torch.float32, device=device) + 0.5) / side * 2 - 1)[:, None] * frequencies
        for side in (height, width)
    )
    quarter = head_width // 4
    halves = torch.cat([rows[:, None].expand(-1, width, quarter), columns[None].expand(height, -1, quarter)], dim=-1)
    return halves.flatten(0, 1).repeat(1, 2)
