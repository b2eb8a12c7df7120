"""Box formats, IoU and generalized IoU.

All functions take tensors with a last dimension of 4 and keep the leading dimensions. `xyxy` is (left, top, right,
bottom), `cxcywh` is (center x, center y, width, height). The unit is up to the caller (relative 0..1 or pixels).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    center, size = boxes.split(2, dim=-1)
    return torch.cat([torch.sub(center, size, alpha=0.5), torch.add(center, size, alpha=0.5)], dim=-1)


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


def cxcywh_ious(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalized IoU (Rezatofighi et al. 2019, arXiv:1902.09630, -1..1) of cxcywh boxes with sides of at least
    0, elementwise, with broadcasting; IoU is 0 if both are empty.

    Everything follows from how far the edges are apart. With maxima and minima of the corners, the backward pass takes
    three times as many kernels.
    """
    center, side = (a - b).split(2, dim=-1)
    low, high = torch.sub(center, side, alpha=0.5), torch.add(center, side, alpha=0.5)  # a's edges relative to b's
    outside = low.abs() + high.abs() - side  # twice the part of b's side that is outside of a
    size_a, size_b = a[..., 2:], b[..., 2:]
    intersection = _product(F.relu(torch.sub(size_b, outside, alpha=0.5)))
    hull = _product(torch.add(size_a, outside, alpha=0.5))
    union = _product(size_a) + _product(size_b) - intersection
    tiny = torch.finfo(union.dtype).tiny
    iou = intersection / F.threshold(union, tiny, tiny)
    return iou, iou - (hull - union) / F.threshold(hull, tiny, tiny)


def cxcywh_generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Elementwise generalized IoU of cxcywh boxes, -1..1 (see `cxcywh_ious`)."""
    return cxcywh_ious(a, b)[1]


def pairwise_box_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of each a with each b: [..., N, 4], [..., M, 4] xyxy -> [..., N, M]."""
    return box_iou(a[..., :, None, :], b[..., None, :, :])


def pairwise_cxcywh_generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Generalized IoU of each a with each b: [..., N, 4], [..., M, 4] cxcywh -> [..., N, M]."""
    return cxcywh_generalized_iou(a[..., :, None, :], b[..., None, :, :])


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of x clamped to 0..1; both x and 1 - x are kept at or above `eps`.

    While training, that is one kernel, and one in the backward pass instead of fourteen. Outside of [eps, 1 - eps], it
    then differs in rounding only (its sigmoid by less than 1e-7) and passes no gradient instead of 1e-5 of it.
    """
    if torch.is_grad_enabled():
        return torch.logit(x, eps)
    x = x.clamp(min=0, max=1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
