"""Losses of stacked predictions: one number per stage.

Shape legend: S stages, B batch, Q queries, C classes, P matched pairs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rtdetr_tool.ops.precision import at_least_float32


def varifocal_loss(
    logits: Tensor, positive: tuple[Tensor, ...], quality: Tensor, alpha: float = 0.75, gamma: float = 2.0
) -> Tensor:
    """Varifocal loss summed per stage: logits [S, B, Q, C] -> [S] (see `varifocal_terms`)."""
    return varifocal_terms(logits, positive, quality, alpha, gamma).flatten(1).sum(1)


def varifocal_terms(
    logits: Tensor, positive: tuple[Tensor, ...], quality: Tensor, alpha: float = 0.75, gamma: float = 2.0
) -> Tensor:
    """Varifocal loss (Zhang et al. 2020, arXiv:2008.13367) of every entry, in the shape of the logits.

    Args:
        positive: index tensors [P], one per axis, of the matched entries, without duplicates.
        quality: [P], IoU of the matched boxes: target and weight of positive entries. All other entries have target 0
            and weight alpha * p^gamma.
    """
    logits = at_least_float32(logits)
    quality = quality.to(logits.dtype)
    with torch.no_grad():
        target = torch.zeros_like(logits).index_put(positive, quality)
        weight = (alpha * logits.sigmoid() ** gamma).index_put(positive, quality)
    return F.binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="none")


def matchability_aware_loss(
    logits: Tensor, positive: tuple[Tensor, ...], quality: Tensor, gamma: float = 1.5
) -> Tensor:
    """Matchability-aware loss per stage: logits [S, B, Q, C] -> [S] (see `matchability_aware_terms`)."""
    return matchability_aware_terms(logits, positive, quality, gamma).flatten(1).sum(1)


def matchability_aware_terms(
    logits: Tensor, positive: tuple[Tensor, ...], quality: Tensor, gamma: float = 1.5
) -> Tensor:
    """Matchability-aware loss (DEIM, Huang et al. 2024, arXiv:2412.04234, eq. 3) of every entry.

    Matched entries have the target quality^gamma and weight 1, so that matches of low IoU count as much as others; the
    varifocal loss weights them by their IoU. All other entries have target 0 and weight p^gamma.

    Args:
        positive: as of `varifocal_terms`.
        quality: [P], IoU of the matched boxes.
    """
    logits = at_least_float32(logits)
    quality = quality.to(logits.dtype) ** gamma
    with torch.no_grad():
        target = torch.zeros_like(logits).index_put(positive, quality)
        weight = (logits.sigmoid() ** gamma).index_put(positive, torch.ones_like(quality))
    return F.binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="none")


def sum_by_stage(values: Tensor, stage: Tensor, stages: int) -> Tensor:
    """Sum values [P, ...] over the pairs of each stage -> [S, ...]."""
    return values.new_zeros(stages, *values.shape[1:]).index_add(0, stage, values)
