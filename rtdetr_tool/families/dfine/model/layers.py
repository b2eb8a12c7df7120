"""A layer of D-FINE's decoder (arXiv:2410.13842) and the estimate of the localization quality.

Shape legend: B batch, S tokens of all levels, Q queries, D width, R reg_max.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtdetr_tool.models.decoder_layer import DeformableAttention
from rtdetr_tool.ops.attention import SelfAttention
from rtdetr_tool.ops.deformable import Memory, Shapes
from rtdetr_tool.ops.layers import MLP

_LQE_TOP, _LQE_WIDTH = 4, 64  # largest probabilities of an edge, and the width of the network that reads them
_LARGEST = 65504.0  # of float16


class Gate(nn.Module):
    """Mixes a query with what it sampled, each multiplied by a gate that depends on both."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * dim, 2 * dim)
        self.norm = nn.LayerNorm(dim)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)  # both gates start at 0.5

    def forward(self, content: Tensor, sampled: Tensor) -> Tensor:
        keep, add = self.gate(torch.cat([content, sampled], dim=-1)).sigmoid().chunk(2, dim=-1)
        output: Tensor = self.norm(keep * content + add * sampled)
        return output


class DFINELayer(nn.Module):
    """Self-attention of the queries, deformable attention to the levels with a gate, feed-forward network."""

    def __init__(self, dim: int, num_heads: int, dim_feedforward: int, points: Sequence[int]) -> None:
        super().__init__()
        self.self_attn = SelfAttention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn = DeformableAttention(dim, num_heads, points, projected=False)
        self.gateway = Gate(dim)
        self.linear1 = nn.Linear(dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, dim)
        self.norm3 = nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

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
        content = self.norm1(content + attended)
        content = self.gateway(content, self.cross_attn(content + position, reference, memory, shapes))
        content = content + self.linear2(F.relu(self.linear1(content)))
        if self.training:  # in float16
            content = content.clamp(-_LARGEST, _LARGEST)
        output: Tensor = self.norm3(content)
        return output


class LocalizationQuality(nn.Module):
    """A correction of all class logits of a query from how peaked the distributions of its edges are."""

    def __init__(self) -> None:
        super().__init__()
        self.reg_conf = MLP(4 * (_LQE_TOP + 1), _LQE_WIDTH, 1, 2)
        for weight in self.reg_conf.layers[-1].parameters():
            nn.init.zeros_(weight)

    def forward(self, corners: Tensor) -> Tensor:
        """corners [B, Q, 4 * (R + 1)] -> [B, Q, 1]."""
        top = corners.unflatten(-1, (4, -1)).softmax(-1).topk(_LQE_TOP, dim=-1).values
        features = torch.cat([top, top.mean(-1, keepdim=True)], dim=-1).flatten(-2)
        output: Tensor = self.reg_conf(features)
        return output
