"""Attention of tokens among themselves, with a position added to queries and keys but not to values (DETR).

Shape legend: N sequences, L tokens, D width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtdetr_tool.ops.onednn import linear


class SelfAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` for queries and keys from one input and values from another, with half the kernels.

    `nn.MultiheadAttention` projects the three separately and moves the batch to the second axis, which costs copies.
    Weights have the same names and results are the same up to float rounding.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__(dim, num_heads, dropout, batch_first=True)

    def forward(self, query: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]  # one input less
        """Attend to all tokens.

        Args:
            query: [N, L, D], also the keys.
            value: [N, L, D].
            mask: [L, L], added to the scores (see `additive_mask`).
        """
        length, width = int(query.shape[1]), int(query.shape[2])  # constants in a trace; only the batch varies
        weight, value_weight = self.in_proj_weight.split([2 * width, width])
        bias, value_bias = self.in_proj_bias.split([2 * width, width])
        queries, keys = linear(query, weight, bias).split(width, dim=-1)
        values = linear(value, value_weight, value_bias)
        shape = (-1, length, self.num_heads, self.head_dim)
        q, k, v = (part.reshape(shape).transpose(1, 2) for part in (queries, keys, values))  # [N, H, L, D / H] each
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        joined = attended.transpose(1, 2).reshape(-1, length, width)
        return linear(joined, self.out_proj.weight, self.out_proj.bias)


def additive_mask(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of pairs that must not see each other, True = hidden, as numbers to add to the scores."""
    return torch.zeros_like(hidden, dtype=dtype).masked_fill_(hidden, -torch.inf)
