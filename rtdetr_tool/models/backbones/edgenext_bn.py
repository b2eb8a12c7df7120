"""EdgeNeXt with batch norms and hard swish, the `bn_hs` variants of the original (Maaz et al. 2022, arXiv:2206.10589).

timm only has the network with layer norms, so its blocks are modified in place; the names are timm's.

Shape legend: B batch, C channels, h, w size of the map, N = h*w.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import LayerNorm2d
from timm.models.edgenext import ConvBlock, SplitTransposeBlock
from torch import Tensor, nn

from rtdetr_tool.models.backbones.timm_staged import StagedBackbone
from rtdetr_tool.ops.layers import zero_bias


class EdgeNextBnBackbone(StagedBackbone):
    """EdgeNeXt whose norms are batch norms, with hard swish and without biases before a norm."""

    def __init__(self, name: str, indices: Sequence[int], *args: Any, **options: Any) -> None:
        super().__init__(name, indices, *args, act_layer=nn.Hardswish, conv_bias=False, **options)
        for module in self.modules():
            if isinstance(module, ConvBlock):
                module.__class__ = _ConvBlock
                module.norm = _batch_norm_for(module.norm)
            elif isinstance(module, SplitTransposeBlock):
                module.__class__ = _SplitTransposeBlock
                module.norm_xca, module.norm = _batch_norm_for(module.norm_xca), _batch_norm_for(module.norm)
                module.convs = nn.ModuleList(_with_bias(conv) for conv in module.convs)
            elif isinstance(module, nn.Sequential):  # stem and downsampling layers
                for index, child in enumerate(module):
                    if isinstance(child, LayerNorm2d):
                        module[index] = _batch_norm_for(child)


class _ConvBlock(ConvBlock):
    """Depthwise convolution, norm, MLP; [B, C, h, w]."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv_dw(x)).permute(0, 2, 3, 1)
        y = self.gamma * self.mlp(y)
        output: Tensor = x + self.drop_path(y.permute(0, 3, 1, 2))
        return output


class _SplitTransposeBlock(SplitTransposeBlock):
    """Convolutions over groups of channels with increasing receptive field, channel attention, MLP; [B, C, h, w].

    Unlike with layer norms, the residual is the normalized input, and the position is added after the norm.
    """

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        y = self.norm_xca(self._convolved(x)).flatten(2).transpose(1, 2)  # [B, N, C]
        if self.pos_embd is not None:
            y = y + self.pos_embd((batch, height, width)).flatten(2).transpose(1, 2)
        y = y + self.drop_path(self.gamma_xca * self.xca(y))
        y = self.norm(y.transpose(1, 2).reshape(batch, channels, height, width)).permute(0, 2, 3, 1)
        y = self.gamma * self.mlp(y)
        output: Tensor = x + self.drop_path(y.permute(0, 3, 1, 2))
        return output

    def _convolved(self, x: Tensor) -> Tensor:
        """Add the output of the previous group to each group of channels except the last, and convolve it."""
        groups = x.chunk(len(self.convs) + 1, dim=1)
        outputs: list[Tensor] = []
        for group, conv in zip(groups, self.convs, strict=False):
            outputs.append(conv(outputs[-1] + group if outputs else group))
        return torch.cat([*outputs, groups[-1]], dim=1)


def _batch_norm_for(norm: nn.Module) -> nn.BatchNorm2d:
    assert isinstance(norm, nn.LayerNorm)  # as timm builds these blocks
    return nn.BatchNorm2d(norm.normalized_shape[0])


def _with_bias(conv: nn.Module) -> nn.Conv2d:
    assert isinstance(conv, nn.Conv2d)  # as timm builds these blocks
    width, (kernel, _) = conv.out_channels, conv.kernel_size
    biased = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
    nn.init.trunc_normal_(biased.weight, std=0.02)
    zero_bias(biased)
    return biased
