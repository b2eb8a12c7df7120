"""RF-DETR's projector turns the feature maps of a ViT, all of one size, into the levels that the decoder reads.

The design is ViTDet's (Li et al. 2022, arXiv:2203.16527) with the fusion block of YOLOv8, as in LW-DETR (Chen et al.
2024, arXiv:2406.03459). Submodules have the names of the public weights; those named `bn` are layer norms.

Shape legend: B batch, T feature maps of the ViT, D channels and h, w size of a map, C channels of a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtdetr_tool.catalog import PROJECTOR_SCALES
from rtdetr_tool.errors import UserError
from rtdetr_tool.ops.layers import SiLU, modules_of_type

_EPS = 1e-6  # of the norms
_BLOCKS = 3  # bottlenecks of a fusion block


class MultiScaleProjector(nn.Module):
    """T maps [B, D, h, w] -> one [B, C, s * h, s * w] per level with scale s (P3 2, P4 1, P5 0.5), finest first."""

    def __init__(self, channels: Sequence[int], outputs: int, levels: Sequence[str]) -> None:
        super().__init__()
        if not levels or list(levels) != sorted({*levels}) or not {*levels} <= PROJECTOR_SCALES.keys():
            raise UserError(
                f"projector_scale: {list(levels)} is invalid; expected {', '.join(PROJECTOR_SCALES)}, ascending"
            )
        self.scales = tuple(PROJECTOR_SCALES[level] for level in levels)
        self.stages_sampling = nn.ModuleList(
            nn.ModuleList(nn.Sequential(*_sampling(width, scale)) for width in channels) for scale in self.scales
        )
        self.stages = nn.ModuleList(
            nn.Sequential(FusionBlock(sum(_sampled_width(width, scale) for width in channels), outputs), Norm(outputs))
            for scale in self.scales
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        samplings = modules_of_type(self.stages_sampling, nn.ModuleList)
        return [
            fuse(torch.cat([sample(x) for sample, x in zip(sampling, maps, strict=True)], dim=1))
            for sampling, fuse in zip(samplings, self.stages, strict=True)
        ]


def _sampled_width(width: int, scale: float) -> int:
    return width // 2 if scale > 1 else width


def _sampling(width: int, scale: float) -> list[nn.Module]:
    """Layers that resize a feature map to the size of a level; none if it has that size."""
    if scale > 1:
        return [nn.ConvTranspose2d(width, _sampled_width(width, scale), 2, stride=2)]
    return [] if scale == 1 else [ConvNorm(width, width, 3, 2, nn.ReLU(inplace=True))]


class Norm(nn.LayerNorm):
    """Layer norm over the channels of a map [B, C, h, w]."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, _EPS).permute(
            0, 3, 1, 2
        )


class ConvNorm(nn.Module):
    """Convolution without bias, norm, activation, with padding that keeps the size at stride 1."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, act: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = Norm(outputs)
        self.act = SiLU() if act is None else act

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.act(self.bn(self.conv(x)))
        return output


class Bottleneck(nn.Module):
    """Two 3x3 convolutions of one width, without a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = ConvNorm(width, width, 3), ConvNorm(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.cv2(self.cv1(x))
        return output


class FusionBlock(nn.Module):
    """A chain of bottlenecks at half the width; all intermediate maps are concatenated at the end (YOLOv8's C2f)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.width = outputs // 2
        self.cv1 = ConvNorm(inputs, 2 * self.width, 1)
        self.cv2 = ConvNorm((2 + _BLOCKS) * self.width, outputs, 1)
        self.m = nn.ModuleList(Bottleneck(self.width) for _ in range(_BLOCKS))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(x).split(self.width, dim=1))
        for bottleneck in self.m:
            parts.append(bottleneck(parts[-1]))
        output: Tensor = self.cv2(torch.cat(parts, dim=1))
        return output
