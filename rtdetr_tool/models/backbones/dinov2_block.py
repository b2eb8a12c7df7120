"""Blocks of a windowed DINOv2: attention in each window or in the whole image.

Shape legend: B batch, n windows per side, L tokens of a window, D width, N sequences (windows or images).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from rtdetr_tool.ops.onednn import is_exact_linear, linear

NORM_EPS = 1e-6  # of the layer norms


class Block(nn.Module):
    """Pre-norm attention and MLP, each scaled per channel. tokens [B * n * n, L, D].

    Args:
        merge: windows per side that attend to each other; 1 = each window separately.
    """

    scale1: nn.Parameter | None  # None once it is part of the layer before it
    scale2: nn.Parameter | None
    drop_path: nn.Module

    def __init__(self, width: int, num_heads: int, drop_path: float = 0.0, merge: int = 1) -> None:
        super().__init__()
        self.merge = merge
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=NORM_EPS), nn.LayerNorm(width, eps=NORM_EPS)
        self.attention = Attention(width, num_heads)
        self.scale1, self.scale2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        attended = self._split_windows(self.attention(self._merge_windows(self.norm1(tokens))))
        tokens = tokens + self.drop_path(self._scaled(attended, self.scale1))
        hidden = self.fc2(F.gelu(self.fc1(self.norm2(tokens))))
        output: Tensor = tokens + self.drop_path(self._scaled(hidden, self.scale2))
        return output

    def _merge_windows(self, tokens: Tensor) -> Tensor:
        """[B * n * n, L, D] -> [B, n * n * L, D] in a global block."""
        windows = self.merge * self.merge
        return tokens if windows == 1 else tokens.reshape(-1, windows * int(tokens.shape[1]), int(tokens.shape[2]))

    def _split_windows(self, tokens: Tensor) -> Tensor:
        """The reverse of `_merge_windows`."""
        windows = self.merge * self.merge
        return tokens if windows == 1 else tokens.reshape(-1, int(tokens.shape[1]) // windows, int(tokens.shape[2]))

    @staticmethod
    def _scaled(tokens: Tensor, scale: Tensor | None) -> Tensor:
        return tokens if scale is None else tokens * scale

    @torch.no_grad()
    def fold_for_inference(self) -> None:
        self.attention.fold_projections()
        for layer, scale in ((self.attention.output, self.scale1), (self.fc2, self.scale2)):
            if scale is not None:
                layer.weight.mul_(scale[:, None])
                layer.bias.mul_(scale)
        self.scale1 = self.scale2 = None
        self.drop_path = nn.Identity()


class Attention(nn.Module):
    """Softmax attention of every token to every token of the same sequence; tokens [N, L, D]."""

    joint: nn.Linear | None  # query, key and value, once they are one layer

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.joint = None
        self.num_heads = num_heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.joint is not None:
            parts = self.joint(tokens).chunk(3, dim=-1)
        elif self.training and all(map(_is_plain, (self.query, self.key, self.value))):
            # one product of the joined weights, whose backward pass takes a third of the kernels
            weight = torch.cat([self.query.weight, self.key.weight, self.value.weight])
            bias = torch.cat([self.query.bias, self.key.bias, self.value.bias])
            parts = linear(tokens, weight, bias).chunk(3, dim=-1)
        else:
            parts = (self.query(tokens), self.key(tokens), self.value(tokens))
        length, width = int(tokens.shape[1]), int(tokens.shape[2])  # constants in a trace; only the batch varies
        heads = (-1, length, self.num_heads, width // self.num_heads)
        query, key, value = (part.reshape(heads).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(query, key, value)
        output: Tensor = self.output(attended.transpose(1, 2).reshape(-1, length, width))
        return output

    def fold_projections(self) -> None:
        """Replace the three linear layers by one."""
        parts = (self.query, self.key, self.value)
        joint = nn.Linear(parts[0].in_features, 3 * parts[0].out_features).to(parts[0].weight)
        joint.weight.copy_(torch.cat([part.weight for part in parts]))
        joint.bias.copy_(torch.cat([part.bias for part in parts]))
        self.joint = joint.requires_grad_(False)
        del self.query, self.key, self.value


def _is_plain(layer: nn.Module) -> bool:
    """Whether only the weights of a linear layer matter: it is no adapter (LoRA), and no hook reads its output."""
    return is_exact_linear(layer) and not layer._forward_hooks
