"""Contrastive denoising queries (DINO, Zhang et al. 2022, arXiv:2203.03605, section 3.3) as used by RT-DETR.

Each group repeats the ground truth twice: once with small noise (positive, must predict its object) and once with large
noise (negative, must predict "no object").

Shape legend: B batch, M maximum number of denoised objects per image of the batch, G groups, D = G * 2 * M denoising
queries, Q queries.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rtdetr_tool.ops.boxes import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh
from rtdetr_tool.ops.structures import Target

logger = logging.getLogger(__name__)


@dataclass
class DenoisingQueries:
    labels: Tensor  # [B, D] class index, padding = num_classes
    boxes: Tensor  # [B, D, 4] cxcywh as logits
    attention_mask: Tensor  # [D + Q, D + Q] bool, True = masked out
    positive_index: list[Tensor]  # per image [G * N], group-major, on the CPU
    object_index: list[Tensor]  # per image [G * N]: the object of each positive, on the CPU
    groups: int


def build_denoising(
    targets: Sequence[Target],
    num_classes: int,
    num_queries: int,
    num_denoising: int,
    label_noise: float = 0.5,
    box_noise: float = 1.0,
) -> DenoisingQueries | None:
    """Noisy copies of the ground truth; None if disabled or if no image of the batch has an object.

    A label is replaced by a random one with probability `label_noise / 2`. Each corner moves by up to `box_noise` times
    half the side: factor 0..1 for positives, 1..2 for negatives, random direction.

    `num_denoising` limits the positives of an image, and the queries to twice as many. Up to that number of objects
    there are `num_denoising // M` groups, as in the official code and TAO. For an image with more objects, the official
    code uses all of them; here `num_denoising` are chosen at random.
    """
    selected = [_chosen(len(target.labels), num_denoising) for target in targets]
    counts = [len(index) for index in selected]
    most = max(counts, default=0)
    if num_denoising <= 0 or most == 0:
        return None
    groups = num_denoising // most
    device = targets[0].boxes.device

    pairs = list(zip(targets, selected, strict=True))
    labels = pad_sequence([_take(target.labels, index) for target, index in pairs], True, num_classes)  # [B, M]
    boxes = pad_sequence([_take(target.boxes, index) for target, index in pairs], True, 0.0)  # [B, M, 4]
    real = torch.arange(most)[None] < torch.tensor(counts)[:, None]
    real = real.to(device, non_blocking=True).repeat(1, 2 * groups)  # [B, D]
    labels, boxes = labels.repeat(1, 2 * groups), boxes.repeat(1, 2 * groups, 1)
    negative = (torch.arange(2 * groups, device=device) % 2).repeat_interleave(most).to(boxes.dtype)  # [D]

    labels = _noisy_labels(labels, real, num_classes, label_noise)
    with torch.no_grad():  # exactly as in the original (see `inverse_sigmoid`)
        boxes = inverse_sigmoid(_noisy_boxes(boxes, negative, box_noise))
    starts = torch.arange(groups)[:, None] * 2 * most
    positive_index = [(starts + torch.arange(count)).flatten() for count in counts]
    mask = denoising_attention_mask(groups, 2 * most, num_queries, device)
    return DenoisingQueries(labels, boxes, mask, positive_index, [index.repeat(groups) for index in selected], groups)


def _chosen(count: int, limit: int) -> Tensor:
    """The objects of an image to denoise: all of them, or a random selection of `limit`."""
    if not 0 < limit < count:
        return torch.arange(count)
    _log_selection(limit)
    return torch.randperm(count)[:limit].sort().values


def _take(values: Tensor, index: Tensor) -> Tensor:
    return values if len(index) == len(values) else values[index.to(values.device, non_blocking=True)]


@cache
def _log_selection(limit: int) -> None:
    """Log once per process."""
    logger.info(
        "Some images have more objects than model.dn_number (%d); each step denoises a random selection of that many.",
        limit,
    )


def _noisy_labels(labels: Tensor, real: Tensor, num_classes: int, noise: float) -> Tensor:
    if noise <= 0:
        return labels
    flip = (torch.rand(labels.shape, device=labels.device) < noise * 0.5) & real
    return torch.where(flip, torch.randint_like(labels, num_classes), labels)


def _noisy_boxes(boxes: Tensor, negative: Tensor, noise: float) -> Tensor:
    if noise <= 0:
        return boxes
    reach = (boxes[..., 2:] / 2).repeat(1, 1, 2) * noise
    sign = torch.randint_like(boxes, 2) * 2 - 1
    factor = torch.rand_like(boxes) + negative[None, :, None]
    moved = cxcywh_to_xyxy(boxes) + sign * factor * reach
    return xyxy_to_cxcywh(moved.clamp(0, 1))


def denoising_attention_mask(groups: int, group_size: int, num_queries: int, device: torch.device) -> Tensor:
    """Matching queries cannot see denoising queries, groups cannot see each other; [D + Q, D + Q], True = hidden."""
    group = torch.arange(groups, device=device).repeat_interleave(group_size)
    group = torch.cat([group, torch.full((num_queries,), groups, device=device)])
    key_is_denoising = group < groups
    return key_is_denoising[None, :] & (group[None, :] != group[:, None])
