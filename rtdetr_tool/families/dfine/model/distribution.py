"""Box edges as distributions over bins (fine-grained distribution refinement, arXiv:2410.13842, section 4.1).

Each of the four edges of a box has a distribution over `reg_max + 1` offsets. Its mean moves the edge of a reference
box, in units of the box's side divided by `reg_scale`. The offsets are dense around 0 and sparse at the ends.

Shape legend: Q queries, R reg_max.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rtdetr_tool.ops.boxes import xyxy_to_cxcywh

UP = 0.5  # the two largest offsets but one move an edge by this share of the side; the largest by twice as much


def bin_offsets(reg_max: int, reg_scale: float, device: torch.device | None = None) -> Tensor:
    """The weighting function W(n): the offset of each bin, [R + 1], ascending and odd around the middle bin."""
    bound = UP * reg_scale
    base = (bound + 1) ** (2 / (reg_max - 2))
    positive = [base**n - 1 for n in range(1, reg_max // 2)] + [2 * bound]
    return torch.tensor([-x for x in reversed(positive)] + [0.0] + positive, device=device)


def mean_offsets(corners: Tensor, offsets: Tensor) -> Tensor:
    """Mean offset of each edge, [..., 4], from logits [..., 4 * (R + 1)] of the left, top, right and bottom edge."""
    share = corners.unflatten(-1, (4, -1)).softmax(-1)
    column = offsets.to(share.dtype)[:, None]  # OpenVINO 2026.4 cannot compile a vector here
    mean: Tensor = (share @ column).squeeze(-1)
    return mean


def move_edges(reference: Tensor, offsets: Tensor, reg_scale: float) -> Tensor:
    """Boxes [..., 4] cxcywh whose edges are moved outwards from those of `reference` [..., 4] cxcywh."""
    center, size = reference[..., :2], reference[..., 2:]
    distance = 0.5 + offsets / reg_scale  # from the center, in sides
    low, high = center - distance[..., :2] * size, center + distance[..., 2:] * size
    return xyxy_to_cxcywh(torch.cat([low, high], dim=-1))


def edge_offsets(reference: Tensor, target: Tensor, reg_scale: float) -> Tensor:
    """The inverse of `move_edges`: offsets [..., 4] that move `reference` (cxcywh) to `target` (xyxy)."""
    center, unit = reference[..., :2], reference[..., 2:] / reg_scale + 1e-16
    distance = torch.cat([(center - target[..., :2]) / unit, (target[..., 2:] - center) / unit], dim=-1)
    return distance - 0.5 * reg_scale


def nearest_bins(values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The bin below each offset, int64 0..R - 1, and the share of the bin after it, so that the mean is the offset.

    Offsets beyond the bins count as those of the outermost bins.
    """
    values = values.clamp(offsets[0], offsets[-1])
    left = (torch.searchsorted(offsets, values.contiguous(), right=True) - 1).clamp(0, len(offsets) - 2)
    low, high = offsets[left], offsets[left + 1]
    return left, (values - low) / (high - low)
