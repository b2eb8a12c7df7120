"""The blocks of FAN (arXiv:2204.12451): attention over tokens, then an MLP with attention over its channels.

Names are those of the original and of TAO.

Shape legend: B batch, h, w size of the map, N = h*w tokens, C width, G heads, D = C/G.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn


class FanBlock(nn.Module):
    """Attention over tokens, then attention over channels, each with a norm before and a learned scale after it."""

    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = TokenAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = ChannelAttention(width, heads)
        self.gamma1 = nn.Parameter(torch.ones(width))
        self.gamma2 = nn.Parameter(torch.ones(width))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + self.drop_path(self.gamma1 * self.attn(self.norm1(x)))
        output: Tensor = x + self.drop_path(self.gamma2 * self.mlp(self.norm2(x), height, width))
        return output


class TokenAttention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        q = self.q(x).reshape(batch, count, self.heads, -1).transpose(1, 2)  # [B, G, N, D]
        k, v = self.kv(x).reshape(batch, count, 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, count, width)
        output: Tensor = self.proj(attended)
        return output


class ChannelAttention(nn.Module):
    """An MLP whose output channels are weighted by their agreement with their head over all tokens.

    The weight of a channel is the sigmoid of the product of its query (softmax over tokens) with the mean of its
    head's keys (softmax over tokens): one number per image and channel.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.mlp_v = ConvolvedMlp(width, 4 * width)
        self.norm_v = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        batch, count, _ = x.shape
        q = self.q(x).reshape(batch, count, self.heads, -1).softmax(dim=1)  # [B, N, G, D]
        k = x.reshape(batch, count, self.heads, -1).softmax(dim=1).mean(dim=-1, keepdim=True)  # [B, N, G, 1]
        weight = (q * k).sum(dim=1, keepdim=True).sigmoid() * self.temperature[:, 0]  # [B, 1, G, D]
        output: Tensor = weight.flatten(2) * self.norm_v(self.mlp_v(x, height, width))
        return output


class ConvolvedMlp(nn.Module):
    """Two linear layers, with two depthwise 3 x 3 convolutions between them that are added with a learned scale."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.dwconv = DepthwisePair(hidden)
        self.gamma = nn.Parameter(torch.ones(hidden))
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = self.fc1(x)
        near = self.dwconv(tokens_to_map(x, height, width)).flatten(2).transpose(1, 2)
        output: Tensor = self.fc2(self.gamma * near + x)
        return output


class DepthwisePair(nn.Module):
    """Depthwise 3 x 3 convolution, GELU, batch norm, depthwise 3 x 3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.act = nn.GELU()
        self.bn = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.conv2(self.bn(self.act(self.conv1(x))))
        return output


class ClassBlockOnTokens(nn.Module):
    """The part of a class-attention block that applies to the other tokens, which attention does not reach."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.gamma1 = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.norm2(x + self.gamma1 * self.norm1(x))
        return 2 * output  # twice: the block adds what it passes on to itself


def tokens_to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """[B, N, C] -> [B, C, h, w]"""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, height, width)  # unflatten would fix B in a trace
