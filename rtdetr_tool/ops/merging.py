"""Merge detections of overlapping tiles: the same object may be detected in several, and be cut by their edges."""

from __future__ import annotations

import torch
from torch import Tensor

METHODS = ("nms", "nmm")

_SHARE_OF_BEST = 0.5  # of the best score in a group, which a member needs to extend the box


def merge_boxes(boxes: Tensor, scores: Tensor, labels: Tensor, method: str, threshold: float) -> tuple[Tensor, Tensor]:
    """The boxes to keep and their indices, best score first; boxes of different classes are never merged.

    `nms` (non-maximum suppression) drops a box if its IoU with a better one is above `threshold`. `nmm` (non-maximum
    merging) groups boxes by the overlap relative to the smaller one, which also finds the parts of an object that a
    tile has cut, and extends the best box of a group over the members with a comparable score.

    Args:
        boxes: [N, 4] xyxy.

    Returns:
        boxes [K, 4] and their indices [K] in the input.
    """
    if method == "nms":
        from torchvision.ops import batched_nms  # takes a second

        kept = batched_nms(boxes, scores, labels, threshold)
        return boxes[kept], kept
    left = scores.argsort(descending=True, stable=True)
    merged, kept_indices = [], []
    while len(left):
        best, rest = left[0], left[1:]
        grouped = (labels[rest] == labels[best]) & (_overlap(boxes[best], boxes[rest]) > threshold)
        members = rest[grouped]
        strong = torch.cat([best[None], members[scores[members] >= _SHARE_OF_BEST * scores[best]]])
        merged.append(torch.cat([boxes[strong, :2].amin(0), boxes[strong, 2:].amax(0)]))
        kept_indices.append(best)
        left = rest[~grouped]
    if not merged:
        return boxes[:0], torch.zeros(0, dtype=torch.int64)
    return torch.stack(merged), torch.stack(kept_indices)


def _overlap(box: Tensor, boxes: Tensor) -> Tensor:
    """Intersection of a box with each of `boxes`, relative to the smaller of the two."""
    sides = (torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])).clamp(min=0)
    smaller = torch.minimum((box[2:] - box[:2]).prod(), (boxes[:, 2:] - boxes[:, :2]).prod(1))
    return sides.prod(1) / smaller.clamp(min=1e-6)
