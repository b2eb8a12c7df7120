"""Build operators that older ONNX operator sets lack from operators that they have.

`GridSample` requires set 16 and attention set 14 of PyTorch's exporter, but TAO's specs request set 12.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@contextmanager
def fallback_operators(*names: str) -> Iterator[None]:
    """Inside the block, `grid_sample` and attention run (and are traced) as elementary operators, with equal results.

    The functions of `torch.nn.functional` are replaced in this process, because a `TorchFunctionMode` would not see the
    attention inside `multi_head_attention_forward`.

    Args:
        names: the functions to replace; none = all.
    """
    rows = [row for row in REPLACEMENTS if not names or row[1] in names]
    replaced = [(owner, name, getattr(owner, name)) for owner, name, _ in rows]
    for owner, name, function in rows:
        setattr(owner, name, function)
    try:
        yield
    finally:
        for owner, name, function in replaced:
            setattr(owner, name, function)


def grid_sample(
    image: Tensor, grid: Tensor, mode: str = "bilinear", padding_mode: str = "zeros", align_corners: bool | None = None
) -> Tensor:
    """`torch.nn.functional.grid_sample` for bilinear, zeros and `align_corners=False`, by gathering the four corners.

    image [N, D, H, W], grid [N, Q, P, 2] (x, y) in -1..1 -> [N, D, Q, P].
    """
    if (mode, padding_mode, bool(align_corners)) != ("bilinear", "zeros", False):
        raise NotImplementedError(f"grid_sample with {mode}, {padding_mode}, align_corners={align_corners}")
    height, width = int(image.shape[-2]), int(image.shape[-1])
    rows = image.flatten(2)  # [N, D, H * W]
    x = (grid[..., 0] + 1) * (width / 2) - 0.5  # pixels, [N, Q, P]
    y = (grid[..., 1] + 1) * (height / 2) - 0.5
    left, top = x.floor(), y.floor()
    parts: list[Tensor] = []
    for column in (left, left + 1):
        for row in (top, top + 1):
            inside_column, inside_row = column.clamp(0, width - 1), row.clamp(0, height - 1)
            inside = (inside_column == column) & (inside_row == row)
            share = (1 - (x - column).abs()) * (1 - (y - row).abs()) * inside.to(x.dtype)
            index = (inside_row * width + inside_column).long().flatten(1)[:, None].expand(-1, rows.shape[1], -1)
            part = rows.gather(2, index).unflatten(2, grid.shape[1:3]) * share[:, None]
            parts.append(part)
    return parts[0] + parts[1] + parts[2] + parts[3]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` as products and a softmax; full attention without dropout."""
    if is_causal or enable_gqa or dropout_p:
        raise NotImplementedError("attention with a causal mask, grouped queries or dropout")
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    weights = (query * scale) @ key.transpose(-2, -1)
    if attn_mask is not None:
        weights = weights.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else weights + attn_mask
    return weights.softmax(-1) @ value


def unflatten(tensor: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """`torch.Tensor.unflatten` as a reshape."""
    dim = dim % tensor.dim()
    return tensor.reshape(*tensor.shape[:dim], *sizes, *tensor.shape[dim + 1 :])


REPLACEMENTS: tuple[tuple[Any, str, Callable[..., Tensor]], ...] = (
    (F, "grid_sample", grid_sample),
    (F, "scaled_dot_product_attention", attention),
    (Tensor, "unflatten", unflatten),
)
