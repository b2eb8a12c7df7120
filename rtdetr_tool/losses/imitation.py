"""Distances between student and teacher outputs: one number per pair of tensors.

Shape legend: B batch, C channels or classes, h, w size of a map, N tokens, Q queries of the teacher, M maximum
objects per image, P matched pairs of queries.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rtdetr_tool.losses.matcher import PaddedTargets
from rtdetr_tool.ops.boxes import cxcywh_generalized_iou, cxcywh_to_xyxy, pairwise_box_iou

SMALLEST_MASK = 0.01  # as in TAO and DETRDistill: background keeps a little weight


def mean_absolute(student: Tensor, teacher: Tensor) -> Tensor:
    """L1: mean of |student - teacher| over all elements."""
    return (student.float() - teacher.float()).abs().mean()


def mean_square(student: Tensor, teacher: Tensor) -> Tensor:
    """L2: mean of (student - teacher)^2 over all elements."""
    return (student.float() - teacher.float()).square().mean()


def relative_entropy(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of softmax(x / T), times T^2 (Hinton et al. 2015, arXiv:1503.02531).

    In a map [B, C, h, w] each channel is a distribution over the h * w locations (channel-wise distillation, Shu et
    al. 2021, arXiv:2011.13256); otherwise ([B, N, C], [B, C]) the last axis is. Summed over each distribution, averaged
    over distributions.
    """
    if student.ndim == 4:
        student, teacher = student.flatten(2), teacher.flatten(2)
    log_student = F.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=-1)
    return (log_teacher.exp() * (log_teacher - log_student)).sum(-1).mean() * temperature**2


# Target-aware imitation (criterion IOU)


def query_quality(scores: Tensor, boxes: Tensor, targets: PaddedTargets) -> Tensor:
    """Quality of the teacher's queries, [B, Q]: score times the best IoU with an object.

    In an image without objects it is the score.

    Args:
        scores: [B, Q], 0..1 (after the sigmoid).
        boxes: [B, Q, 4] cxcywh 0..1, as in `targets`.
    """
    scores = scores.float()
    if not any(targets.counts):
        return scores
    overlap = pairwise_box_iou(cxcywh_to_xyxy(boxes.float()), cxcywh_to_xyxy(targets.boxes))  # [B, Q, M]
    counts = torch.tensor(targets.counts).to(scores.device, non_blocking=True)[:, None]  # [B, 1]
    real = torch.arange(overlap.shape[-1], device=scores.device) < counts  # [B, M]
    best = overlap.masked_fill(~real[:, None], 0.0).amax(-1)
    return scores * torch.where(counts > 0, best, 1.0)


def target_mask(features: Tensor, queries: Tensor, quality: Tensor) -> Tensor:
    """Similarity of features and the teacher's good queries, [B, 1, h, w] in (0, 1], with a maximum of 1 in each image.

    m(p) = max(sum over n of quality_n * cos(query_n, feature at p), 0.01), divided by its maximum over the image.

    Args:
        features: [B, C, h, w] of the teacher.
        queries: [B, Q, C]; quality: [B, Q].
    """
    direction = (quality.float()[..., None] * F.normalize(queries.float(), dim=-1)).sum(
        1
    )  # [B, C], summed over n first
    mask = (direction[..., None, None] * F.normalize(features.float(), dim=1)).sum(1, keepdim=True).clamp(SMALLEST_MASK)
    return mask / mask.amax((2, 3), keepdim=True)


def masked_square(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean of (mask * student - mask * teacher)^2 over all elements of [B, C, h, w]."""
    return (mask * (student.float() - teacher.float())).square().mean()


# Matched predictions: one value per pair, [P]


def class_distance(student: Tensor, teacher: Tensor, criterion: str, temperature: float = 1.0) -> Tensor:
    """Distance of class logits [P, C] -> [P], summed over the classes.

    L1 and L2 compare probabilities. KL is the relative entropy of one Bernoulli distribution per class with probability
    sigmoid(logit / T), times T^2, as the detectors use sigmoids.
    """
    student, teacher = student.float(), teacher.float()
    if criterion == "KL":
        student, teacher = student / temperature, teacher / temperature
        target = teacher.sigmoid()
        cross_entropy = F.binary_cross_entropy_with_logits(student, target, reduction="none")
        entropy = F.binary_cross_entropy_with_logits(teacher, target, reduction="none")
        return (cross_entropy - entropy).sum(-1) * temperature**2
    difference = student.sigmoid() - teacher.sigmoid()
    return (difference.abs() if criterion == "L1" else difference.square()).sum(-1)


def box_distance(student: Tensor, teacher: Tensor, criterion: str) -> Tensor:
    """Distance of boxes [P, 4] cxcywh 0..1 -> [P]: L1 and L2 summed over coordinates; IOU is 1 - generalized IoU."""
    student, teacher = student.float(), teacher.float()
    if criterion == "IOU":
        return 1 - cxcywh_generalized_iou(student, teacher)
    difference = student - teacher
    return (difference.abs() if criterion == "L1" else difference.square()).sum(-1)
