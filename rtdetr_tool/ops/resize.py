"""Antialiased bicubic resizing as two matrix products.

`F.interpolate(mode="bicubic", antialias=True)` computes the same, but does not export to ONNX and does not run on every
device. Here the weights are constants in a traced graph, and gradients are those of a matrix product.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SHARPNESS = -0.5  # Keys' parameter a, as in the antialiased resize of PyTorch and Pillow
_REACH = 2.0  # radius of the kernel, in pixels of the smaller grid


def resize_bicubic(grid: Tensor, height: int, width: int) -> Tensor:
    """[..., h, w, D] -> [..., height, width, D] in float32; pixel centers at half integers."""
    old_height, old_width = int(grid.shape[-3]), int(grid.shape[-2])  # int(): tracing would keep tensors
    rows = resize_matrix(old_height, height).to(grid.device, non_blocking=True)
    columns = resize_matrix(old_width, width).to(grid.device, non_blocking=True)
    with torch.autocast(grid.device.type, enabled=False):
        tall: Tensor = (rows @ grid.float().flatten(-2)).unflatten(-1, (old_width, -1))  # [..., height, w, D]
        return columns @ tall


def resize_matrix(old: int, new: int) -> Tensor:
    """Weights [new, old] float32 of the old pixels in each new pixel; rows sum to 1."""
    compute = _weights if torch.compiler.is_compiling() else _cached_weights  # graphs trace NumPy, but no cache
    return torch.from_numpy(compute(old, new))


@lru_cache(maxsize=64)
def _cached_weights(old: int, new: int) -> NDArray[np.float32]:
    return _weights(old, new)


def _weights(old: int, new: int) -> NDArray[np.float32]:
    scale = old / new
    stretch = max(scale, 1.0)  # downsampling widens the kernel to avoid aliasing
    center = (np.arange(new) + 0.5) * scale
    first = np.maximum(np.floor(center - _REACH * stretch + 0.5), 0)
    last = np.minimum(np.floor(center + _REACH * stretch + 0.5), old)
    pixel = np.arange(old)
    weights: NDArray[np.float64] = _keys((pixel + 0.5 - center[:, None]) / stretch)
    weights *= (pixel >= first[:, None]) & (pixel < last[:, None])
    normalized: NDArray[np.float32] = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return normalized


def _keys(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cubic convolution kernel (Keys 1981); zero at distances of 2 and above."""
    x, a = np.abs(x), _SHARPNESS
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
