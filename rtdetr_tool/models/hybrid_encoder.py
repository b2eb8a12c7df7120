"""RT-DETR's hybrid encoder (Zhao et al. 2023, arXiv:2304.08069, section 4.2).

Attention within selected levels (AIFI), then a top-down and a bottom-up fusion across levels (CCFM).
Submodules have the names of the public weights.

Shape legend: B batch, D hidden_dim, h, w size of a level; levels run from fine to coarse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtdetr_tool.ops.attention import SelfAttention
from rtdetr_tool.ops.layers import ConvNorm, CSPRepLayer, build_activation
from rtdetr_tool.ops.position import sincos_position_2d


class EncoderOutput(NamedTuple):
    """`maps`: fused levels for the decoder. `projected`: the levels after projection and attention, before fusion."""

    maps: list[Tensor]  # [B, D, h, w] each
    projected: list[Tensor]  # [B, D, h, w] each


class FusionParts(NamedTuple):
    """What the fusion of two levels consists of; each function builds one module."""

    lateral: Callable[[], nn.Module]  # before a level is raised, D -> D channels
    downsample: Callable[[], nn.Module]  # to half the size, D -> D channels
    block: Callable[[], nn.Module]  # of two concatenated levels, 2D -> D channels


class HybridEncoder(nn.Module):
    """Backbone levels in, as many levels of `hidden_dim` channels out.

    Args:
        channels: channels of each backbone level, fine to coarse; each level has half the size of the previous one.
        attention_levels: levels (index into `channels`) that get the transformer encoder.
        expansion, depth_mult: width and number (`round(3 * depth_mult)`) of the RepVGG blocks in each fusion block.
        parts: modules of the fusion instead of RT-DETR's.
        pe_order: layout of the position embedding, `columns` or `rows` (see `sincos_position_2d`).
        num_outputs: number of returned levels, the finest ones. Modules that only the others need exist for their
            weights' names, but are neither run nor trained.
    """

    def __init__(
        self,
        channels: Sequence[int],
        hidden_dim: int = 256,
        attention_levels: Sequence[int] = (2,),
        num_heads: int = 8,
        dim_feedforward: int = 1024,
        dropout: float = 0.0,
        num_layers: int = 1,
        pe_temperature: float = 10000.0,
        expansion: float = 1.0,
        depth_mult: float = 1.0,
        enc_act: str = "gelu",
        act: str = "silu",
        num_outputs: int | None = None,
        pe_order: str = "columns",
        parts: FusionParts | None = None,
    ) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.num_outputs = num_outputs or len(channels)
        self.attention_levels = tuple(attention_levels)
        self.pe_temperature, self.pe_order = pe_temperature, pe_order
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, hidden_dim, 1, bias=False), nn.BatchNorm2d(hidden_dim))
            for inputs in channels
        )
        self.encoder = nn.ModuleList(
            TransformerEncoder(num_layers, hidden_dim, num_heads, dim_feedforward, dropout, enc_act)
            for _ in self.attention_levels
        )
        parts = parts or rtdetr_fusion(hidden_dim, round(3 * depth_mult), expansion, act)
        steps = range(len(channels) - 1)
        self.lateral_convs = nn.ModuleList(parts.lateral() for _ in steps)
        self.fpn_blocks = nn.ModuleList(parts.block() for _ in steps)
        self.downsample_convs = nn.ModuleList(parts.downsample() for _ in steps)
        self.pan_blocks = nn.ModuleList(parts.block() for _ in steps)
        for unused in (*self.downsample_convs[self.num_outputs - 1 :], *self.pan_blocks[self.num_outputs - 1 :]):
            unused.requires_grad_(False)
        self._positions: dict[tuple[object, ...], Tensor] = {}

    def forward(self, features: Sequence[Tensor]) -> EncoderOutput:
        levels = [project(feature) for project, feature in zip(self.input_proj, features, strict=True)]
        for layers, index in zip(self.encoder, self.attention_levels, strict=True):
            levels[index] = self._attend(layers, levels[index])
        return EncoderOutput(self._fuse(levels), levels)

    def _attend(self, layers: nn.Module, level: Tensor) -> Tensor:
        height, width = int(level.shape[-2]), int(level.shape[-1])
        tokens: Tensor = layers(level.flatten(2).transpose(1, 2), self._position(height, width, level))
        return tokens.transpose(1, 2).reshape(level.shape[0], self.hidden_dim, height, width)

    def _position(self, height: int, width: int, like: Tensor) -> Tensor:
        """[1, h * w, D], cached per size: any input size works in training and in eval mode.

        A compiled graph computes it, because a table from the cache would make one graph per size.
        """
        if torch.compiler.is_compiling():
            return self._build_position(height, width, like.device)
        key = (height, width, like.device)
        if key not in self._positions:
            with torch.inference_mode(False):  # training must be able to use a table cached during inference
                self._positions[key] = self._build_position(height, width, like.device)
        return self._positions[key]

    def _build_position(self, height: int, width: int, device: torch.device) -> Tensor:
        return sincos_position_2d(height, width, self.hidden_dim, self.pe_temperature, device, self.pe_order)[None]

    def _fuse(self, levels: list[Tensor]) -> list[Tensor]:
        """Top-down, then bottom-up fusion. The lists of blocks are ordered coarse to fine and fine to coarse."""
        fine_to_coarse = [levels[-1]]
        for step, lower in enumerate(reversed(levels[:-1])):
            upper = self.lateral_convs[step](fine_to_coarse[0])
            fine_to_coarse[0] = upper
            raised = F.interpolate(upper, size=lower.shape[-2:], mode="nearest")
            fine_to_coarse.insert(0, self.fpn_blocks[step](torch.cat([raised, lower], dim=1)))
        maps = [fine_to_coarse[0]]
        for step, upper in enumerate(fine_to_coarse[1 : self.num_outputs]):
            lowered = self.downsample_convs[step](maps[-1])
            maps.append(self.pan_blocks[step](torch.cat([lowered, upper], dim=1)))
        return maps


def rtdetr_fusion(dim: int, blocks: int, expansion: float, act: str) -> FusionParts:
    """RT-DETR's fusion, with this number of RepVGG blocks of `expansion * dim` channels."""
    return FusionParts(
        lateral=lambda: ConvNorm(dim, dim, 1, act=act),
        downsample=lambda: ConvNorm(dim, dim, 3, 2, act=act),
        block=lambda: CSPRepLayer(2 * dim, dim, blocks, expansion, act),
    )


class TransformerEncoder(nn.Module):
    """Post-norm transformer encoder; the position embedding is added to queries and keys of every layer."""

    def __init__(
        self, num_layers: int, dim: int, num_heads: int, dim_feedforward: int, dropout: float, act: str
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(dim, num_heads, dim_feedforward, dropout, act) for _ in range(num_layers)
        )

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        for layer in self.layers:
            tokens = layer(tokens, position)
        return tokens


class EncoderLayer(nn.Module):
    def __init__(self, dim: int, num_heads: int, dim_feedforward: int, dropout: float, act: str) -> None:
        super().__init__()
        self.self_attn = SelfAttention(dim, num_heads, dropout)
        self.linear1 = nn.Linear(dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.activation = build_activation(act)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        attended = self.self_attn(tokens + position, tokens)
        tokens = self.norm1(tokens + self.dropout(attended))
        hidden = self.linear2(self.dropout(self.activation(self.linear1(tokens))))
        output: Tensor = self.norm2(tokens + self.dropout(hidden))
        return output
