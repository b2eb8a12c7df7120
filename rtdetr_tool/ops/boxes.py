"""Box formats, IoU and generalized IoU.

All functions take tensors with a last dimension of 4 and keep the leading dimensions. `xyxy` is (left, top, right,
bottom), `cxcywh` is (center x, center y, width, height). The unit is up to the caller (relative 0..1 or pixels).
"""

from __future__ import annotations

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([center - half, center + half], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def box_area(boxes: Tensor) -> Tensor:
    """Area of xyxy boxes; negative sides count as zero."""
    return _product((boxes[..., 2:] - boxes[..., :2]).clamp(min=0))


def _product(sides: Tensor) -> Tensor:
    """Width times height, [..., 2] -> [...]; the backward pass of `prod` takes a dozen kernels more."""
    width, height = sides.unbind(-1)
    return width * height


def _intersection_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    intersection = _product((high - low).clamp(min=0))
    return intersection, box_area(a) + box_area(b) - intersection


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Elementwise IoU of xyxy boxes, with broadcasting; 0 if both are empty."""
    intersection, union = _intersection_and_union(a, b)
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def generalized_box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Elementwise generalized IoU (Rezatofighi et al. 2019, arXiv:1902.09630) of xyxy boxes, -1..1, broadcasting."""
    return both_ious(a, b)[1]


def both_ious(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """`box_iou` and `generalized_box_iou`, which share most of their work."""
    tiny = torch.finfo(a.dtype).tiny
    intersection, union = _intersection_and_union(a, b)
    low = torch.minimum(a[..., :2], b[..., :2])
    high = torch.maximum(a[..., 2:], b[..., 2:])
    hull = _product((high - low).clamp(min=0))
    iou = intersection / union.clamp(min=tiny)
    return iou, iou - (hull - union) / hull.clamp(min=tiny)


def pairwise_box_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of each a with each b: [..., N, 4], [..., M, 4] -> [..., N, M]."""
    return box_iou(a[..., :, None, :], b[..., None, :, :])


def pairwise_generalized_box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Generalized IoU of each a with each b: [..., N, 4], [..., M, 4] -> [..., N, M]."""
    return generalized_box_iou(a[..., :, None, :], b[..., None, :, :])


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of x clamped to 0..1; both x and 1 - x are kept at or above `eps`."""
    x = x.clamp(min=0, max=1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
