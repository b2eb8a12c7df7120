"""A layer of RT-DETR's decoder, and the deformable attention in it (arXiv:2304.08069; RT-DETRv2 arXiv:2407.17140).

Shape legend: B batch, S tokens of all levels, Q queries, D width, H heads, P points of a level, N points of all levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtdetr_tool.errors import UserError
from rtdetr_tool.ops.attention import SelfAttention
from rtdetr_tool.ops.deformable import Memory, Shapes, deformable_sample, flatten_levels, sample_maps
from rtdetr_tool.ops.layers import PointwiseLinear, build_activation
from rtdetr_tool.ops.precision import at_least_float32


class DecoderLayerBase(nn.Module):
    """A decoder layer without the attention among the queries, which subclasses do in `forward`."""

    def __init__(
        self, dim: int, num_heads: int, dim_feedforward: int, dropout: float, act: str, cross_attn: nn.Module
    ) -> None:
        super().__init__()
        self.self_attn = SelfAttention(dim, num_heads, dropout)
        self.cross_attn = cross_attn
        self.linear1 = nn.Linear(dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, dim)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.activation = build_activation(act)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def update(
        self, content: Tensor, attended: Tensor, reference: Tensor, memory: Memory, shapes: Shapes, position: Tensor
    ) -> Tensor:
        """The content of the queries after the layer; `attended` is the output of the attention among them."""
        content = self.norm1(content + self.dropout(attended))
        sampled = self.cross_attn(content + position, reference, memory, shapes)
        content = self.norm2(content + self.dropout(sampled))
        hidden = self.linear2(self.dropout(self.activation(self.linear1(content))))
        output: Tensor = self.norm3(content + self.dropout(hidden))
        return output


class DecoderLayer(DecoderLayerBase):
    """Self-attention of the queries, deformable attention to the levels, feed-forward network; all post-norm."""

    def forward(
        self,
        content: Tensor,
        reference: Tensor,
        memory: Memory,
        shapes: Shapes,
        position: Tensor,
        attention_mask: Tensor | None,
    ) -> Tensor:
        attended = self.self_attn(content + position, content, attention_mask)
        return self.update(content, attended, reference, memory, shapes, position)


class DeformableAttention(nn.Module):
    """Each query samples P points per level and head around its reference box (arXiv:2010.04159).

    Args:
        num_points: points of each level.
        method: `default` (bilinear) or `discrete` (whole pixels, RT-DETRv2), with which the offsets are not trained.
        offset_scale: an offset of P units is `offset_scale` times the side of the box.
        projected: project values and output; D-FINE samples the levels as they are.

    With `precise`, gradients are the same in every run (`ops.deformable`).
    """

    precise = False
    unit: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_points: Sequence[int],
        method: str = "default",
        offset_scale: float = 0.5,
        projected: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.points = num_heads, tuple(num_points)
        self.discrete, self.offset_scale = method == "discrete", offset_scale
        total = num_heads * sum(self.points)
        self.sampling_offsets = nn.Linear(dim, total * 2)
        self.attention_weights = nn.Linear(dim, total)
        self.value_proj = PointwiseLinear(dim, dim) if projected else nn.Identity()
        self.output_proj = nn.Linear(dim, dim) if projected else nn.Identity()
        unit = torch.tensor([offset_scale / count for count in self.points for _ in range(count)])
        self.register_buffer("unit", unit[:, None], persistent=False)  # [N, 1], of an offset, in sides of the box
        self.reset_parameters()
        self.sampling_offsets.requires_grad_(not self.discrete)

    def reset_parameters(self) -> None:
        """Heads sample in evenly spread directions, point p of a level at distance p, with equal weights."""
        angle = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.cat([torch.arange(1, count + 1, dtype=torch.float32) for count in self.points])
        offsets = direction[:, None] * distance[:, None]  # [H, N, 2]
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.reshape(-1))
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            if isinstance(projection, nn.Linear):
                nn.init.xavier_uniform_(projection.weight)
                nn.init.zeros_(projection.bias)

    def forward(self, query: Tensor, reference: Tensor, memory: Memory, shapes: Shapes) -> Tensor:
        """query [B, Q, D], reference [B, Q, 4] cxcywh 0..1, memory [B, S, D] or maps [B, D, h, w] -> [B, Q, D]."""
        batch, queries, _ = query.shape
        spread = (batch, queries, self.heads, sum(self.points))
        offsets = at_least_float32(self.sampling_offsets(query)).view(*spread, 2)
        weights = F.softmax(at_least_float32(self.attention_weights(query)).view(spread), dim=-1)
        center, size = reference[:, :, None, None].split(2, dim=-1)
        locations = center + offsets * (self.unit * size)  # [B, Q, H, N, 2]
        output: Tensor = self.output_proj(self._sample(memory, shapes, locations, weights))
        return output

    def _sample(self, memory: Memory, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        if not isinstance(memory, Tensor):
            if not self.discrete:
                values = [self._split_heads(self.value_proj(level)) for level in memory]
                return sample_maps(values, locations, weights, self.points).to(memory[0].dtype)
            memory = flatten_levels(memory)[0]
        batch, tokens, dim = memory.shape
        value = self.value_proj(memory).view(batch, tokens, self.heads, dim // self.heads)
        return deformable_sample(value, shapes, locations, weights, self.points, self.discrete, self.precise)

    def _split_heads(self, level: Tensor) -> Tensor:
        """[B, D, h, w] -> [B * H, D / H, h, w] float32; only the batch may vary in the traced graph."""
        dim, height, width = (int(size) for size in level.shape[1:])
        return at_least_float32(level).reshape(-1, dim // self.heads, height, width)


def points_per_level(num_points: int | Sequence[int], levels: int) -> list[int]:
    """Sampling points per level; a single number applies to all levels."""
    points = [num_points] if isinstance(num_points, int) else list(num_points)
    points = points * levels if len(points) == 1 else points
    if len(points) != levels or min(points) < 1:
        raise UserError(f"num_points: {points} is invalid; expected one positive integer, or {levels}, one per level")
    return points
