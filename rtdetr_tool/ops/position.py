"""Sine-cosine position embeddings of feature maps (RT-DETR's AIFI, arXiv:2304.08069) and of boxes."""

from __future__ import annotations

import torch
from torch import Tensor


def sincos_position_2d(
    height: int,
    width: int,
    dim: int,
    temperature: float = 10000.0,
    device: torch.device | str | None = None,
    order: str = "columns",
) -> Tensor:
    """Position embedding [height * width, dim]: sine and cosine of the outer coordinate, then of the inner one.

    The tokens are row-major. With `order` "rows" the embedding is too (Hugging Face transformers from version 5). With
    "columns" it is column-major, as for the transposed map (the official code and TAO). Both agree on square maps; on
    rectangular maps they assign different embeddings, and weights work only with the order they were trained with.
    """
    frequency = torch.arange(dim // 4, dtype=torch.float32, device=device) / (dim // 4)
    frequency = 1.0 / temperature**frequency
    sides = (height, width) if order == "rows" else (width, height)
    outer, inner = torch.meshgrid(
        *(torch.arange(side, dtype=torch.float32, device=device) for side in sides), indexing="ij"
    )
    angle_outer = outer.reshape(-1, 1) * frequency
    angle_inner = inner.reshape(-1, 1) * frequency
    return torch.cat([angle_outer.sin(), angle_outer.cos(), angle_inner.sin(), angle_inner.cos()], dim=1)


def sine_of_boxes(boxes: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
    """Position embedding [..., 4 * dim] of boxes [..., 4] cxcywh 0..1: sines and cosines interleaved, y before x.

    The order y, x, w, h and the period of 2 pi are from Conditional DETR (arXiv:2108.06152), as in RF-DETR's weights.
    """
    pair = torch.arange(dim, dtype=torch.float32, device=boxes.device).div(2, rounding_mode="floor")
    period = temperature ** (2 * pair[::2] / dim)  # [dim / 2]
    x, y, size = boxes.split([1, 1, 2], dim=-1)
    swapped = torch.cat([y, x, size], dim=-1)  # a list as index would block a GPU
    angle = swapped[..., None] * (2 * torch.pi) / period
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-3)
