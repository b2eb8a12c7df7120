"""Losses of the distributions of box edges: fine-grained localization (FGL) and self-distillation (DDF).

D-FINE (arXiv:2410.13842), section 4. Queries with an object and those without are rows of one tensor with a mask, so
that nothing waits for the number of pairs.

Shape legend: L decoder layers, B batch, Q queries, R reg_max.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rtdetr_tool.families.dfine.model.distribution import edge_offsets, nearest_bins
from rtdetr_tool.ops.boxes import cxcywh_to_xyxy
from rtdetr_tool.ops.precision import at_least_float32

_TEMPERATURE = 5.0


class Supervised(NamedTuple):
    """The object that each query must predict at all stages."""

    boxes: Tensor  # [B, Q, 4] cxcywh 0..1; anything where not matched
    matched: Tensor  # [B, Q] bool


class Balance(NamedTuple):
    """Weights of the queries with and without an object in the distillation; they add up to 1."""

    matched: Tensor
    unmatched: Tensor

    @classmethod
    def of(cls, matched: Tensor) -> Balance:
        """Proportional to the roots of their numbers; from [B, Q] bool."""
        positive, negative = (mask.sum().sqrt() for mask in (matched, ~matched))
        return cls(positive / (positive + negative), negative / (positive + negative))


def localization(
    corners: Tensor, references: Tensor, targets: Supervised, quality: Tensor, offsets: Tensor, reg_scale: float
) -> Tensor:
    """Cross-entropy with the two bins next to each edge of the object, weighted by IoU and summed, [L].

    Args:
        corners: [L, B, Q, 4 * (R + 1)] logits.
        references: [B, Q, 4] cxcywh, the boxes whose edges are moved.
        quality: [L, B, Q], IoU of the predicted boxes with the object.
        offsets: [R + 1], of the bins.
    """
    target_offsets = edge_offsets(at_least_float32(references), cxcywh_to_xyxy(targets.boxes), reg_scale)
    left, share = nearest_bins(target_offsets, offsets)  # [B, Q, 4]
    log_share = F.log_softmax(at_least_float32(corners).unflatten(-1, (4, -1)), dim=-1)  # [L, B, Q, 4, R + 1]
    index = torch.stack([left, left + 1], dim=-1).expand(len(corners), -1, -1, -1, -1)
    near = log_share.gather(-1, index)  # [L, B, Q, 4, 2]
    entropy = -(near * torch.stack([1 - share, share], dim=-1)).sum((-1, -2))
    return (entropy * quality * targets.matched).sum((1, 2))


def distillation(corners: Tensor, logits: Tensor, targets: Supervised, quality: Tensor, balance: Balance) -> Tensor:
    """Relative entropy between the distributions of the last layer and those of each earlier one, [L - 1].

    A query with an object is weighted by its IoU with it, any other by the last layer's score.

    Args:
        corners, quality: as of `localization`.
        logits: [B, Q, C] of the last layer.
    """
    scaled = at_least_float32(corners).unflatten(-1, (4, -1)) / _TEMPERATURE
    teacher = F.log_softmax(scaled[-1].detach(), dim=-1)
    student = F.log_softmax(scaled[:-1], dim=-1)
    distance = (teacher.exp() * (teacher - student)).sum((-1, -2)) * _TEMPERATURE**2  # [L - 1, B, Q]
    score = at_least_float32(logits.detach()).sigmoid().amax(-1)
    weighted = distance * torch.where(targets.matched, quality[:-1], score)
    parts = [
        share * (weighted * mask).sum((1, 2)) / (4 * mask.sum()).clamp(min=1)
        for share, mask in ((balance.matched, targets.matched), (balance.unmatched, ~targets.matched))
    ]
    return parts[0] + parts[1]
