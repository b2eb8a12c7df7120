"""Multi-scale deformable attention: sampling several feature maps at fractional locations.

Deformable DETR (Zhu et al. 2021, arXiv:2010.04159): bilinear, zero outside the map, pixel centers at half integers.
RT-DETRv2 (Lv et al. 2024, arXiv:2407.17140): a different number of points per level, optionally discrete sampling.

Shape legend: B batch, S tokens of all levels, H heads, D channels of a head, Q queries, N points of all levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from rtdetr_tool.ops.precision import at_least_float32
from rtdetr_tool.ops.weighted_sums import weighted_sums

Shapes = Sequence[tuple[int, int]]  # (height, width) per level
Memory = Tensor | Sequence[Tensor]  # tokens of all levels [B, S, D], or maps [B, D, h, w], one per level


def memory_of(maps: Sequence[Tensor], tokens: Tensor) -> Memory:
    """What the decoder attends to: in a traced graph the maps, as `grid_sample` needs them; otherwise their tokens."""
    return list(maps) if torch.jit.is_tracing() else tokens


def flatten_levels(maps: Sequence[Tensor]) -> tuple[Tensor, Shapes]:
    """Maps [B, D, h, w] as tokens [B, S, D], and the (h, w) of each."""
    shapes = [(int(level.shape[-2]), int(level.shape[-1])) for level in maps]
    return torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1), shapes


def deformable_sample(
    value: Tensor,
    shapes: Shapes,
    locations: Tensor,
    weights: Tensor,
    points: Sequence[int],
    discrete: bool = False,
    precise: bool = False,
) -> Tensor:
    """Weighted sum of sampled values.

    Args:
        value: [B, S, H, D], the levels of `shapes` concatenated, each row-major.
        locations: [B, Q, H, N, 2], (x, y) relative to the map, 0..1; the points of all levels concatenated.
        weights: [B, Q, H, N].
        points: number of points per level; their sum is N.
        discrete: take the pixel at `floor(location * size + 0.5)`, clamped to the map, instead of a bilinear sample.
            No gradient to `locations`; exports without `grid_sample`.
        precise: sum gradients in a fixed order, so that a step gives the same bits again. The fused kernels and
            `grid_sample` add them up atomically on CUDA.

    Returns:
        [B, Q, H * D] in the dtype of `value`.

    The implementation depends on the device. CPU: `embedding_bag`, which takes a fifth of the time of `grid_sample`
    forward (a third with backward). CUDA: fused Triton kernels, if they run there (`deformable_fused.is_usable`).
    Otherwise, and in exported and compiled graphs: `grid_sample`. With `precise`: `embedding_bag` on CUDA too. All
    agree up to float rounding.
    """
    in_graph = torch.jit.is_tracing() or torch.compiler.is_compiling()
    in_bags = (value.device.type == "cpu" or (precise and value.device.type == "cuda")) and not in_graph
    if value.device.type == "cuda" and not in_graph and not precise:
        from rtdetr_tool.ops import deformable_fused  # imports this module

        if deformable_fused.is_usable(value.device):
            return deformable_fused.fused_sample(value, shapes, locations, weights, points, discrete)
    if discrete:
        index = pixel_index(shapes, locations, points)
        return (bags_of_pixels if in_bags else gather_pixels)(value, index, weights)
    return (sample_by_bags if in_bags else sample_by_grid)(value, shapes, locations, weights, points)


def sample_by_grid(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor, points: Sequence[int]) -> Tensor:
    """Bilinear sampling with one `grid_sample` per level; exports to ONNX from opset 16.

    Always in float32: half precision would shift locations by whole pixels on a large map.
    """
    batch, _, heads, channels = value.shape
    levels = _split(at_least_float32(value), [height * width for height, width in shapes], 1)
    maps = [
        level.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        for (height, width), level in zip(shapes, levels, strict=True)
    ]
    return sample_maps(maps, locations, weights, points).to(value.dtype)


def sample_maps(maps: Sequence[Tensor], locations: Tensor, weights: Tensor, points: Sequence[int]) -> Tensor:
    """`sample_by_grid` of values that are maps [B * H, D, h, w], one per level; float32 in, float32 out."""
    batch, queries, heads = locations.shape[:3]
    grids = _split(
        (2 * at_least_float32(locations) - 1).transpose(1, 2).flatten(0, 1), points, 2
    )  # [B*H, Q, P, 2] each
    shares = _split(at_least_float32(weights).transpose(1, 2).flatten(0, 1), points, 2)  # [B*H, Q, P] each
    parts = []
    for level, grid, share in zip(maps, grids, shares, strict=True):
        sampled = F.grid_sample(
            level, grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )  # [B*H, D, Q, P]
        parts.append((sampled * share[:, None]).sum(-1))  # [B*H, D, Q]
    summed = reduce(torch.add, parts)
    return summed.reshape(batch, heads * summed.shape[1], queries).transpose(1, 2)


def sample_by_bags(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor, points: Sequence[int]) -> Tensor:
    """Bilinear sampling with one `embedding_bag`: a bag holds the four corners of all points of a query and head.

    Row indices are computed in float32, which is exact up to 2^24 tokens per image.
    """
    width, height, start = (values.to(value.device) for values in _per_point(shapes, points))
    x, y = at_least_float32(locations).unbind(-1)  # [B, Q, H, N] each
    left, right, share_left, share_right = _neighbors(x, width)
    top, bottom, share_top, share_bottom = _neighbors(y, height)
    top, bottom = top * width + start, bottom * width + start
    index = torch.stack([top + left, top + right, bottom + left, bottom + right], dim=-1).int()
    weights = at_least_float32(weights)
    share_top, share_bottom = share_top * weights, share_bottom * weights
    share = torch.stack(
        [share_top * share_left, share_top * share_right, share_bottom * share_left, share_bottom * share_right], dim=-1
    )
    return _sum_of_bags(value, index.flatten(3), share.flatten(3))


@torch.no_grad()
def pixel_index(shapes: Shapes, locations: Tensor, points: Sequence[int]) -> Tensor:
    """Token index of the pixel that RT-DETRv2's discrete sampling takes per location: [B, Q, H, N] int64."""
    first, tokens = 0, []
    for (height, width), level in zip(shapes, _split(locations.float(), points, 3), strict=True):
        column = (level[..., 0] * width + 0.5).floor().clamp(0, width - 1)
        row = (level[..., 1] * height + 0.5).floor().clamp(0, height - 1)
        tokens.append(row * width + column + first)
        first += height * width
    return torch.cat(tokens, dim=3).long()


def bags_of_pixels(value: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of the tokens `index` [B, Q, H, N] with one `embedding_bag`."""
    return _sum_of_bags(value, index.int(), weights.float())


def gather_pixels(value: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """`bags_of_pixels` with one `gather`, which is in every ONNX operator set."""
    batch, _, heads, channels = value.shape
    queries, points = index.shape[1], index.shape[3]
    rows = index.transpose(1, 2).reshape(batch, heads, queries * points, 1).expand(-1, -1, -1, channels)
    gathered = value.float().transpose(1, 2).gather(2, rows).reshape(batch, heads, queries, points, channels)
    summed = (gathered * weights.float().transpose(1, 2)[..., None]).sum(3)  # [B, H, Q, D]
    return summed.transpose(1, 2).reshape(batch, queries, heads * channels).to(value.dtype)


def _split(x: Tensor, sizes: Sequence[int], axis: int) -> Sequence[Tensor]:
    """Split along `axis`; no operator for a single part, which some converters do not support."""
    return (x,) if len(sizes) == 1 else torch.split(x, list(sizes), dim=axis)


def _per_point(shapes: Shapes, points: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Width, height and first token of the level of each of the N points; float32 [N], on CPU."""
    first, rows = 0, []
    for (height, width), count in zip(shapes, points, strict=True):
        rows += [(width, height, first)] * count
        first += height * width
    table = torch.tensor(rows, dtype=torch.float32)
    return table[:, 0], table[:, 1], table[:, 2]


def _sum_of_bags(value: Tensor, index: Tensor, share: Tensor) -> Tensor:
    """token index [B, Q, H, I] int32, share [B, Q, H, I] float32 -> [B, Q, H * D]."""
    batch, tokens, heads, channels = value.shape
    bags = batch * index.shape[1] * heads
    # A row of the table is one head of one token: (b * S + s) * H + h.
    image = torch.arange(batch, dtype=torch.int32, device=value.device).view(-1, 1, 1, 1) * (tokens * heads)
    head = torch.arange(heads, dtype=torch.int32, device=value.device).view(-1, 1)
    rows = (index * heads + (image + head)).view(bags, -1)
    table = at_least_float32(value).reshape(batch * tokens * heads, channels)
    summed = weighted_sums(table, rows, share.reshape(bags, -1))
    return summed.view(batch, -1, heads * channels).to(value.dtype)


def _neighbors(coordinate: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two pixels adjacent to a relative coordinate and their bilinear weights (0 outside the map)."""
    position = coordinate * size - 0.5
    with torch.no_grad():
        low = position.floor()
        high = low + 1
        low_inside, high_inside = low.clamp(min=0).minimum(size - 1), high.clamp(min=0).minimum(size - 1)
        low_valid, high_valid = low == low_inside, high == high_inside
    fraction = position - low
    return low_inside, high_inside, (1 - fraction) * low_valid, fraction * high_valid
