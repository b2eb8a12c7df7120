"""Antialiased bicubic resizing as two matrix products.

`F.interpolate(mode="bicubic", antialias=True)` computes the same, but it neither exports to ONNX nor runs on every
device. Here the weights are plain numbers, so a graph being traced holds them as constants, and gradients are those of
a matrix product.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_SHARPNESS = -0.5  # Keys' parameter a, as PyTorch and Pillow have it when they antialias
_REACH = 2.0  # of the kernel, in pixels of the smaller grid


def resize_bicubic(grid: Tensor, height: int, width: int) -> Tensor:
    """[..., h, w, D] -> [..., height, width, D] in float32; pixel centres at half integers."""
    old_height, old_width = int(grid.shape[-3]), int(grid.shape[-2])  # a graph being traced would keep them as tensors
    rows = resize_matrix(old_height, height).to(grid.device)
    columns = resize_matrix(old_width, width).to(grid.device)
    tall = (rows @ grid.float().flatten(-2)).unflatten(-1, (old_width, -1))  # [..., height, w, D]
    return columns @ tall


def resize_matrix(old: int, new: int) -> Tensor:
    """Weights [new, old] float32 of each old pixel in each new one; rows sum to 1."""
    return torch.from_numpy(_weights(old, new))


@lru_cache(maxsize=64)
def _weights(old: int, new: int) -> np.ndarray:
    scale = old / new
    stretch = max(scale, 1.0)  # shrinking widens the kernel, which keeps fine detail from aliasing
    centre = (np.arange(new) + 0.5) * scale
    first = np.maximum(np.floor(centre - _REACH * stretch + 0.5), 0)
    last = np.minimum(np.floor(centre + _REACH * stretch + 0.5), old)
    pixel = np.arange(old)
    weights = _keys((pixel + 0.5 - centre[:, None]) / stretch)
    weights *= (pixel >= first[:, None]) & (pixel < last[:, None])
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _keys(x: np.ndarray) -> np.ndarray:
    """Cubic convolution kernel (Keys 1981), zero from distance 2 on."""
    x, a = np.abs(x), _SHARPNESS
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
