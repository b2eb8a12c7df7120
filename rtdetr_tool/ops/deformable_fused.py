"""Deformable sampling as one fused operator for CUDA, checked for correctness on first use.

`rtdetr::deformable_sample` runs the Triton kernels of `deformable_kernels` on CUDA. On a CPU it runs `sample_by_bags`
(or `bags_of_pixels`), for tests and for tools that trace with CPU tensors.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from rtdetr_tool.ops.deformable import (
    _neighbors,
    _per_point,
    bags_of_pixels,
    gather_pixels,
    pixel_index,
    sample_by_bags,
    sample_by_grid,
)

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-4  # of the check on first use


def fused_sample(
    value: Tensor,
    shapes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
    points: Sequence[int],
    discrete: bool,
) -> Tensor:
    """As `deformable.deformable_sample`."""
    sizes = [side for shape in shapes for side in shape]
    sampled: Tensor = torch.ops.rtdetr.deformable_sample(
        value.contiguous(), sizes, locations.float().contiguous(), weights.float().contiguous(), list(points), discrete
    )
    return sampled


@cache
def is_usable(device: torch.device) -> bool:
    """Whether the kernels run on this device and agree with `grid_sample`, forward and backward; logs the decision."""
    if importlib.util.find_spec("triton") is None:
        logger.info("Deformable attention on %s uses grid_sample, because triton is not installed", device)
        return False
    try:
        worst = max(_difference(device, discrete) for discrete in (False, True))
    except Exception as error:  # compilers and drivers raise all kinds of errors; grid_sample always works
        logger.warning("Deformable attention on %s uses grid_sample, because its kernels failed: %s", device, error)
        return False
    if not worst <= _TOLERANCE:
        logger.warning(
            "Deformable attention on %s uses grid_sample, because its kernels differ from it by %.1e", device, worst
        )
        return False
    logger.info("Deformable attention on %s uses fused Triton kernels", device)
    return True


def _difference(device: torch.device, discrete: bool) -> float:
    """The largest difference between the kernels and the reference on a small example."""
    generator = torch.Generator().manual_seed(0)
    shapes, points = [(5, 7), (3, 4)], [2, 3]
    inputs = [
        torch.randn(2, 47, 2, 8, generator=generator),
        torch.rand(2, 6, 2, 5, 2, generator=generator) * 1.4 - 0.2,
        torch.rand(2, 6, 2, 5, generator=generator),
    ]
    outer = torch.randn(2, 6, 16, generator=generator).to(device)
    results = []
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for fused in (True, False):
            value, locations, weights = (x.to(device).requires_grad_() for x in inputs)
            if fused:
                sampled = fused_sample(value, shapes, locations, weights, points, discrete)
            elif discrete:
                sampled = gather_pixels(value, pixel_index(shapes, locations, points), weights)
            else:
                sampled = sample_by_grid(value, shapes, locations, weights, points)
            trained = [value, weights] if discrete else [value, locations, weights]
            results.append([sampled, *torch.autograd.grad(sampled, trained, outer)])
    return max(float((a - b).detach().abs().max()) for a, b in zip(*results, strict=True))


@torch.library.custom_op("rtdetr::deformable_sample", mutates_args=())
def _deformable_sample(
    value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor, points: Sequence[int], discrete: bool
) -> Tensor:
    if value.is_cuda:
        from rtdetr_tool.ops import deformable_kernels

        return deformable_kernels.forward(value, tuple(sizes), locations, weights, tuple(points), discrete)
    shapes = list(zip(sizes[::2], sizes[1::2], strict=True))
    if discrete:
        return bags_of_pixels(value, pixel_index(shapes, locations, points), weights)
    return sample_by_bags(value, shapes, locations, weights, points)


@torch.library.custom_op("rtdetr::deformable_sample_backward", mutates_args=())
def _deformable_sample_backward(
    grad: Tensor,
    value: Tensor,
    sizes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    points: Sequence[int],
    discrete: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if value.is_cuda:
        from rtdetr_tool.ops import deformable_kernels

        return deformable_kernels.backward(grad, value, tuple(sizes), locations, weights, tuple(points), discrete)
    # The gradients written out, since there is no autograd inside an operator.
    batch, _, heads, channels = value.shape
    shapes = list(zip(sizes[::2], sizes[1::2], strict=True))
    if discrete:
        index, shares = pixel_index(shapes, locations, points)[..., None], torch.ones_like(weights)[..., None]
        slopes = torch.zeros_like(shares), torch.zeros_like(shares)
    else:
        index, shares, slopes = _corners(shapes, locations, points)  # [B, Q, H, N, 4] each
    rows = index.transpose(1, 2).flatten(2)[..., None].expand(-1, -1, -1, channels)  # [B, H, Q * N * 4, D]
    pixels = value.float().transpose(1, 2).gather(2, rows).unflatten(2, (-1, *index.shape[3:])).transpose(1, 2)
    outer = grad.float().view(batch, -1, heads, 1, 1, channels)
    products = (outer * pixels).sum(-1)  # [B, Q, H, N, 4]
    spread = (outer * (weights[..., None] * shares)[..., None]).transpose(1, 2).flatten(2, 4)
    by_value = torch.zeros(batch, heads, value.shape[1], channels, device=value.device).scatter_add(2, rows, spread)
    by_location = torch.stack([weights * (slope * products).sum(-1) for slope in slopes], dim=-1)
    return by_value.transpose(1, 2).to(value.dtype).contiguous(), by_location, (shares * products).sum(-1)


def _corners(
    shapes: Sequence[tuple[int, int]], locations: Tensor, points: Sequence[int]
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Token, bilinear share, and its slope along x and y, of the four corners of each location."""
    width, height, start = _per_point(shapes, points)
    x, y = locations.unbind(-1)
    left, right, share_left, share_right = _neighbors(x, width)
    top, bottom, share_top, share_bottom = _neighbors(y, height)
    slope_left, slope_right = -width * _inside(x, width, 0), width * _inside(x, width, 1)
    slope_top, slope_bottom = -height * _inside(y, height, 0), height * _inside(y, height, 1)
    top, bottom = top * width + start, bottom * width + start
    index = torch.stack([top + left, top + right, bottom + left, bottom + right], dim=-1).long()

    def outer(across: tuple[Tensor, Tensor], down: tuple[Tensor, Tensor]) -> Tensor:
        return torch.stack([d * a for d in down for a in across], dim=-1)

    across, down = (share_left, share_right), (share_top, share_bottom)
    slopes = outer((slope_left, slope_right), down), outer(across, (slope_top, slope_bottom))
    return index, outer(across, down), slopes


def _inside(coordinate: Tensor, size: Tensor, step: int) -> Tensor:
    """Whether the pixel at or after (`step` 1) a relative coordinate is inside the map."""
    pixel = (coordinate * size - 0.5).floor() + step
    return ((pixel >= 0) & (pixel < size)).to(coordinate.dtype)


@_deformable_sample.register_fake
def _(value: Tensor, sizes: Sequence[int], locations: Tensor, *_others: object) -> Tensor:
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@_deformable_sample_backward.register_fake
def _(
    grad: Tensor, value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor, *_others: object
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(value), torch.empty_like(locations), torch.empty_like(weights)


def _save_inputs(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # autograd's context
    value, ctx.sizes, locations, weights, ctx.points, ctx.discrete = inputs
    ctx.save_for_backward(value, locations, weights)


def _differentiate(ctx, grad):  # type: ignore[no-untyped-def]  # autograd's context
    value, locations, weights = ctx.saved_tensors
    gradients = torch.ops.rtdetr.deformable_sample_backward(
        grad.contiguous(), value, ctx.sizes, locations, weights, ctx.points, ctx.discrete
    )
    grad_value, grad_locations, grad_weights = gradients
    return grad_value, None, None if ctx.discrete else grad_locations, grad_weights, None, None


_deformable_sample.register_autograd(_differentiate, setup_context=_save_inputs)
