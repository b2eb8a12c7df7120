"""Sine-cosine position embedding of a feature map, as RT-DETR's encoder adds it (arXiv:2304.08069, AIFI)."""

from __future__ import annotations

import torch
from torch import Tensor


def sincos_position_2d(
    height: int, width: int, dim: int, temperature: float = 10000.0, device: torch.device | str | None = None
) -> Tensor:
    """Position embedding [height * width, dim]: sine and cosine of x, then sine and cosine of y, `dim / 4` each.

    The rows run over x in the outer and y in the inner loop, while the tokens they are added to run over y in the outer
    loop. The official code and TAO do so and their weights were trained with it, so it stays: on a square map it only
    swaps the axes, on a rectangular one it is a fixed permutation that a model learns around. (transformers 5 agrees on
    squares and orders rectangles by rows.)
    """
    frequency = torch.arange(dim // 4, dtype=torch.float32, device=device) / (dim // 4)
    frequency = 1.0 / temperature**frequency
    x, y = torch.meshgrid(
        torch.arange(width, dtype=torch.float32, device=device),
        torch.arange(height, dtype=torch.float32, device=device),
        indexing="ij",
    )
    angle_x = x.reshape(-1, 1) * frequency
    angle_y = y.reshape(-1, 1) * frequency
    return torch.cat([angle_x.sin(), angle_x.cos(), angle_y.sin(), angle_y.cos()], dim=1)


def sine_of_boxes(boxes: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
    """Position embedding [..., 4 * dim] of boxes [..., 4] cxcywh 0..1: sines and cosines in turn, y before x.

    The order y, x, w, h and the period 2 pi of a coordinate are Conditional DETR's (arXiv:2108.06152), which RF-DETR's
    weights were trained with.
    """
    pair = torch.arange(dim, dtype=torch.float32, device=boxes.device).div(2, rounding_mode="floor")
    period = temperature ** (2 * pair[::2] / dim)  # [dim / 2]
    angle = boxes[..., [1, 0, 2, 3], None] * (2 * torch.pi) / period
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-3)
