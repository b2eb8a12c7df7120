"""Triton kernels of deformable sampling: forward and backward, bilinear or discrete, any number of levels and points.

One program per query and head reads its points one after another and keeps nothing but its inputs for the backward
pass. Sums are float32, whatever the dtype of the values.

Shape legend: B batch, S tokens of all levels, H heads, D channels of a head, Q queries, N points of all levels.
"""

# Triton has no type annotations, and the arguments of compiled functions are Triton values, not Python ones.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

Sizes = tuple[int, ...]  # height, width of each level, one after another


@triton.jit
def _first_value(row, tokens, queries, HEADS: tl.constexpr, CHANNELS: tl.constexpr):
    """Offset of the first token's channels, for the image and head of a row."""
    image = (row // (HEADS * queries)).to(tl.int64)
    return image * tokens * HEADS * CHANNELS + (row % HEADS) * CHANNELS


@triton.jit
def _point(locations, levels, at, point):
    """Width, height and first token of the level of a point, and its location in pixels."""
    width, height = tl.load(levels + 3 * point), tl.load(levels + 3 * point + 1)
    start = tl.load(levels + 3 * point + 2)
    return width, height, start, tl.load(locations + 2 * at) * width, tl.load(locations + 2 * at + 1) * height


@triton.jit
def _nearest(x, y, width, height, start):
    """The token of the pixel at a location; those outside belong to the border."""
    column = tl.minimum(tl.maximum(tl.floor(x + 0.5), 0.0), width - 1.0).to(tl.int32)
    line = tl.minimum(tl.maximum(tl.floor(y + 0.5), 0.0), height - 1.0).to(tl.int32)
    return start + line * width + column


@triton.jit
def _token(x, y, width, height, start, used):
    """Index of a pixel among the tokens, and the used lanes if it is inside its level, else none."""
    spread = used.to(tl.int32)  # comparisons of scalars alone are no mask in Triton's interpreter
    x, y = x * spread, y * spread
    return start + y * width + x, used & (x >= 0) & (x < width) & (y >= 0) & (y < height)


@triton.jit
def _forward_kernel(
    value, locations, weights, levels, out, tokens, queries,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, POINTS: tl.constexpr, BLOCK: tl.constexpr, DISCRETE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)  # (image * Q + query) * H + head
    lane = tl.arange(0, BLOCK)
    used = lane < CHANNELS
    value += _first_value(row, tokens, queries, HEADS, CHANNELS)
    total = tl.zeros((BLOCK,), tl.float32)
    for point in range(POINTS):
        at = row * POINTS + point
        weight = tl.load(weights + at)
        width, height, start, x, y = _point(locations, levels, at, point)
        if DISCRETE:
            token = _nearest(x, y, width, height, start)
            total += weight * tl.load(value + token * HEADS * CHANNELS + lane, mask=used, other=0.0).to(tl.float32)
        else:
            left, top = tl.floor(x - 0.5), tl.floor(y - 0.5)
            right_share, bottom_share = x - 0.5 - left, y - 0.5 - top
            for corner in tl.static_range(4):
                right, bottom = corner % 2, corner // 2
                token, inside = _token(left.to(tl.int32) + right, top.to(tl.int32) + bottom, width, height, start, used)
                share = (right_share if right else 1 - right_share) * (bottom_share if bottom else 1 - bottom_share)
                pixel = tl.load(value + token * HEADS * CHANNELS + lane, mask=inside, other=0.0)
                total += weight * share * pixel.to(tl.float32)
    tl.store(out + row * CHANNELS + lane, total.to(out.dtype.element_ty), mask=used)


@triton.jit
def _backward_kernel(
    grad, value, locations, weights, levels, grad_value, grad_locations, grad_weights, tokens, queries,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, POINTS: tl.constexpr, BLOCK: tl.constexpr, DISCRETE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)  # (image * Q + query) * H + head
    lane = tl.arange(0, BLOCK)
    used = lane < CHANNELS
    base = _first_value(row, tokens, queries, HEADS, CHANNELS)
    value += base
    grad_value += base
    outer = tl.load(grad + row * CHANNELS + lane, mask=used, other=0.0).to(tl.float32)
    for point in range(POINTS):
        at = row * POINTS + point
        weight = tl.load(weights + at)
        width, height, start, x, y = _point(locations, levels, at, point)
        if DISCRETE:
            offset = _nearest(x, y, width, height, start) * HEADS * CHANNELS + lane
            pixel = tl.load(value + offset, mask=used, other=0.0).to(tl.float32)
            tl.atomic_add(grad_value + offset, weight * outer, mask=used)
            tl.store(grad_weights + at, tl.sum(outer * pixel, axis=0))
        else:
            left, top = tl.floor(x - 0.5), tl.floor(y - 0.5)
            right_share, bottom_share = x - 0.5 - left, y - 0.5 - top
            along_weight = tl.zeros((BLOCK,), tl.float32)
            along_x = tl.zeros((BLOCK,), tl.float32)
            along_y = tl.zeros((BLOCK,), tl.float32)
            for corner in tl.static_range(4):
                right, bottom = corner % 2, corner // 2
                token, inside = _token(left.to(tl.int32) + right, top.to(tl.int32) + bottom, width, height, start, used)
                share_x = right_share if right else 1 - right_share
                share_y = bottom_share if bottom else 1 - bottom_share
                offset = token * HEADS * CHANNELS + lane
                pixel = tl.load(value + offset, mask=inside, other=0.0).to(tl.float32)
                tl.atomic_add(grad_value + offset, weight * share_x * share_y * outer, mask=inside)
                along_weight += share_x * share_y * pixel
                along_x += (2 * right - 1) * share_y * pixel
                along_y += (2 * bottom - 1) * share_x * pixel
            tl.store(grad_weights + at, tl.sum(outer * along_weight, axis=0))
            tl.store(grad_locations + 2 * at, weight * width * tl.sum(outer * along_x, axis=0))
            tl.store(grad_locations + 2 * at + 1, weight * height * tl.sum(outer * along_y, axis=0))


def forward(value: Tensor, sizes: Sizes, locations: Tensor, weights: Tensor, points: Sizes, discrete: bool) -> Tensor:
    """value [B, S, H, D], locations [B, Q, H, N, 2] and weights [B, Q, H, N] float32 -> [B, Q, H * D]."""
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    out = torch.empty(batch, queries, heads * channels, dtype=value.dtype, device=value.device)
    if out.numel():
        _forward_kernel[(batch * queries * heads,)](
            value, locations, weights, _levels(sizes, points, value.device), out, value.shape[1], queries,
            **_constants(value, weights, discrete),
        )  # fmt: skip
    return out


def backward(
    grad: Tensor, value: Tensor, sizes: Sizes, locations: Tensor, weights: Tensor, points: Sizes, discrete: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations (0 if discrete) and weights."""
    batch, tokens, heads, _ = value.shape
    queries = locations.shape[1]
    grad_value = torch.zeros(value.shape, dtype=torch.float32, device=value.device)  # sums of atomic additions
    grad_locations, grad_weights = torch.zeros_like(locations), torch.empty_like(weights)
    if weights.numel():
        _backward_kernel[(batch * queries * heads,)](
            grad, value, locations, weights, _levels(sizes, points, value.device), grad_value, grad_locations,
            grad_weights, tokens, queries, **_constants(value, weights, discrete),
        )  # fmt: skip
    return grad_value.to(value.dtype), grad_locations, grad_weights


def _constants(value: Tensor, weights: Tensor, discrete: bool) -> dict[str, Any]:
    heads, channels = value.shape[2:]
    block = triton.next_power_of_2(channels)
    sizes = {"HEADS": heads, "CHANNELS": channels, "POINTS": weights.shape[3], "BLOCK": block}
    return {**sizes, "DISCRETE": discrete, "num_warps": max(1, block // 32)}


@lru_cache(maxsize=64)
def _levels(sizes: Sizes, points: Sizes, device: torch.device) -> Tensor:
    """Width, height and first token of the level of each point, int32 [N * 3]."""
    first, rows = 0, []
    for height, width, count in zip(sizes[::2], sizes[1::2], points, strict=True):
        rows += [width, height, first] * count
        first += height * width
    return torch.tensor(rows, dtype=torch.int32).to(device, non_blocking=True)
