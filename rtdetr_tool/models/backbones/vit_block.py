"""Blocks of a windowed ViT: attention in each window or in the whole image.

Shape legend: B batch, n windows per side, L tokens of a window, D width, N sequences (windows or images), S of them per
image (n * n or 1), d width of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from rtdetr_tool.ops.onednn import is_exact_linear, linear


class BlockOptions(NamedTuple):
    """In what the blocks of pretrained ViTs differ; the defaults are DINOv2's."""

    eps: float = 1e-6  # of the layer norms
    qkv_bias: bool = True
    gated: bool = False  # SwiGLU (Shazeer 2020, arXiv:2002.05202) instead of GELU in the MLP
    scale: float = 1.0  # initial value of the layer scales


DINOV2 = BlockOptions()


class Rotation(NamedTuple):
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864): channel i of a head is rotated with i + d/2.

    Both tensors are [S, 1, tokens, d]. The sign of the sine is that of the channel: negative in the first half.
    """

    cos: Tensor
    sin: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """x [N, heads, tokens, d], N a multiple of S."""
        sequences, half = int(self.cos.shape[0]), int(x.shape[-1]) // 2
        parts = x if sequences == 1 else x.reshape(-1, sequences, *map(int, x.shape[1:]))
        swapped = torch.cat([parts[..., half:], parts[..., :half]], dim=-1)
        rotated = torch.addcmul(parts * self.cos.to(x.dtype), swapped, self.sin.to(x.dtype))
        return rotated if sequences == 1 else rotated.reshape(-1, *map(int, x.shape[1:]))


class Block(nn.Module):
    """Pre-norm attention and MLP, each scaled per channel. tokens [B * n * n, L, D].

    Args:
        merge: windows per side that attend to each other; 1 = each window separately.
    """

    scale1: nn.Parameter | None  # None once it is part of the layer before it
    scale2: nn.Parameter | None
    gate: nn.Linear | None
    drop_path: nn.Module

    def __init__(
        self,
        width: int,
        num_heads: int,
        drop_path: float = 0.0,
        merge: int = 1,
        options: BlockOptions = DINOV2,
    ) -> None:
        super().__init__()
        self.merge = merge
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=options.eps), nn.LayerNorm(width, eps=options.eps)
        self.attention = Attention(width, num_heads, options.qkv_bias)
        self.scale1 = nn.Parameter(torch.full((width,), options.scale))
        self.scale2 = nn.Parameter(torch.full((width,), options.scale))
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gate = nn.Linear(width, 4 * width) if options.gated else None
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, rotation: Rotation | None = None) -> Tensor:
        attended = self._split_windows(self.attention(self._merge_windows(self.norm1(tokens)), rotation))
        tokens = tokens + self.drop_path(self._scaled(attended, self.scale1))
        output: Tensor = tokens + self.drop_path(self._scaled(self._mlp(self.norm2(tokens)), self.scale2))
        return output

    def _mlp(self, tokens: Tensor) -> Tensor:
        hidden = self.fc1(tokens)
        hidden = F.gelu(hidden) if self.gate is None else F.silu(self.gate(tokens)) * hidden
        output: Tensor = self.fc2(hidden)
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

    def __init__(self, width: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.joint = None
        self.num_heads = num_heads
        self.query, self.key, self.value = (nn.Linear(width, width, bias=qkv_bias) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, tokens: Tensor, rotation: Rotation | None = None) -> Tensor:
        if self.joint is not None:
            parts = self.joint(tokens).chunk(3, dim=-1)
        elif self.training and all(map(_is_plain, (self.query, self.key, self.value))):
            # one product of the joined weights, whose backward pass takes a third of the kernels
            parts = linear(tokens, *self._joined()).chunk(3, dim=-1)
        else:
            parts = (self.query(tokens), self.key(tokens), self.value(tokens))
        length, width = int(tokens.shape[1]), int(tokens.shape[2])  # constants in a trace; only the batch varies
        heads = (-1, length, self.num_heads, width // self.num_heads)
        query, key, value = (part.reshape(heads).transpose(1, 2) for part in parts)
        if rotation is not None:
            query, key = rotation.apply(query), rotation.apply(key)
        attended = F.scaled_dot_product_attention(query, key, value)
        output: Tensor = self.output(attended.transpose(1, 2).reshape(-1, length, width))
        return output

    def _joined(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of one layer for query, key and value."""
        parts = (self.query, self.key, self.value)
        biases: list[Tensor] = [part.bias for part in parts if part.bias is not None]
        weights: list[Tensor] = [part.weight for part in parts]
        return torch.cat(weights), torch.cat(biases) if biases else None

    def fold_projections(self) -> None:
        """Replace the three linear layers by one."""
        weight, bias = self._joined()
        joint = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None).to(weight)
        joint.weight.copy_(weight)
        if bias is not None:
            joint.bias.copy_(bias)
        self.joint = joint.requires_grad_(False)
        del self.query, self.key, self.value


def _is_plain(layer: nn.Module) -> bool:
    """Whether only the weights of a linear layer matter: it is no adapter (LoRA), and no hook reads its output."""
    return is_exact_linear(layer) and not layer._forward_hooks
