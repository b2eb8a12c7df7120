"""The fusion of D-FINE's hybrid encoder (arXiv:2410.13842): GELAN blocks and separated downsampling.

GELAN is from YOLOv9 (Wang et al. 2024, arXiv:2402.13616), the downsampling from YOLOv10 (Wang et al. 2024,
arXiv:2405.14458). Submodules have the names of the public weights.

Shape legend: B batch, D hidden_dim, h, w size of a level.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rtdetr_tool.models.hybrid_encoder import FusionParts
from rtdetr_tool.ops.layers import ConvNorm, CSPRepLayer

ACT = "silu"


class GelanBlock(nn.Module):
    """Concatenates half of its projected input with the outputs of two stages in sequence, and projects all of it."""

    def __init__(self, inputs: int, outputs: int, hidden: int, stage_width: int, blocks: int) -> None:
        super().__init__()
        self.cv1 = ConvNorm(inputs, hidden, 1, act=ACT)
        self.cv2 = self._stage(hidden // 2, stage_width, blocks)
        self.cv3 = self._stage(stage_width, stage_width, blocks)
        self.cv4 = ConvNorm(hidden + 2 * stage_width, outputs, 1, act=ACT)

    @staticmethod
    def _stage(inputs: int, width: int, blocks: int) -> nn.Sequential:
        return nn.Sequential(CSPRepLayer(inputs, width, blocks, 1.0, ACT), ConvNorm(width, width, 3, act=ACT))

    def forward(self, x: Tensor) -> Tensor:
        projected = self.cv1(x)
        first = self.cv2(projected.chunk(2, dim=1)[1])
        output: Tensor = self.cv4(torch.cat([projected, first, self.cv3(first)], dim=1))
        return output


class SeparatedDownsampling(nn.Module):
    """Mixes channels with a 1x1 convolution, then halves the size with a depthwise one; neither has an activation."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.cv1 = ConvNorm(dim, dim, 1)
        self.cv2 = ConvNorm(dim, dim, 3, 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.cv2(self.cv1(x))
        return output


def dfine_fusion(dim: int, expansion: float, depth_mult: float) -> FusionParts:
    """D-FINE's fusion; a stage of a block has `expansion * dim / 2` channels and `round(3 * depth_mult)` RepVGG blocks.

    Widths are rounded down, depths to the nearest number (halves to even), as in the official code.
    """
    width, blocks = stage_width(dim, expansion), round(3 * depth_mult)
    return FusionParts(
        lateral=lambda: ConvNorm(dim, dim, 1),
        downsample=lambda: nn.Sequential(SeparatedDownsampling(dim)),
        block=lambda: GelanBlock(2 * dim, dim, 2 * dim, width, blocks),
    )


def stage_width(dim: int, expansion: float) -> int:
    return int(expansion * dim // 2)
