"""Hungarian matching of queries to objects, for every decoder layer and image of a step at once.

DETR (Carion et al. 2020, arXiv:2005.12872) with the focal class cost of Deformable DETR (arXiv:2010.04159).

Shape legend: S stages (decoder layers, then the encoder), B batch, Q queries, C classes, M most objects of an image,
P matched pairs of all stages and images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from rtdetr_tool.ops.boxes import cxcywh_to_xyxy, pairwise_generalized_box_iou
from rtdetr_tool.ops.structures import Target


@dataclass
class PaddedTargets:
    """Ground truth of a batch as rectangular tensors; rows past `counts[b]` are padding."""

    labels: Tensor  # [B, M] int64
    boxes: Tensor  # [B, M, 4] cxcywh 0..1
    counts: list[int]

    @classmethod
    def of(cls, targets: Sequence[Target]) -> PaddedTargets:
        pad = torch.nn.utils.rnn.pad_sequence
        return cls(
            pad([t.labels for t in targets], batch_first=True),
            pad([t.boxes for t in targets], batch_first=True, padding_value=0.5),
            [len(t.labels) for t in targets],
        )


@dataclass
class Matches:
    """Matched pairs as flat index tensors [P]: pair p says query `query` of `image` at `stage` is object `target`."""

    stage: Tensor
    image: Tensor
    query: Tensor
    target: Tensor


class HungarianMatcher:
    """Minimises `class_cost * focal + bbox_cost * L1 - giou_cost * GIoU` over one-to-one assignments.

    The focal cost of class c with probability p is alpha (1-p)^gamma (-log p) - (1-alpha) p^gamma (-log(1-p)).
    """

    def __init__(
        self,
        class_cost: float = 2.0,
        bbox_cost: float = 5.0,
        giou_cost: float = 2.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        self.class_cost, self.bbox_cost, self.giou_cost = class_cost, bbox_cost, giou_cost
        self.alpha, self.gamma = alpha, gamma

    @torch.no_grad()
    def __call__(self, logits: Tensor, boxes: Tensor, targets: PaddedTargets) -> Matches:
        """logits [S, B, Q, C], boxes [S, B, Q, 4] cxcywh. One copy to the host, one back."""
        stages = logits.shape[0]
        if not any(targets.counts):
            return Matches(*torch.zeros(4, 0, dtype=torch.long, device=logits.device))
        cost = self.cost(logits, boxes, targets).cpu().numpy()
        rows = []
        for stage in range(stages):
            for image, count in enumerate(targets.counts):
                query, target = assign(cost[stage, image, :, :count])
                rows.append(np.stack([np.full_like(query, stage), np.full_like(query, image), query, target]))
        index = torch.from_numpy(np.concatenate(rows, axis=1))
        return Matches(*index.to(logits.device, non_blocking=True))

    def cost(self, logits: Tensor, boxes: Tensor, targets: PaddedTargets) -> Tensor:
        """[S, B, Q, M]; columns of padding are meaningless."""
        index = targets.labels[None, :, None].expand(logits.shape[0], -1, logits.shape[2], -1)
        classes = self.class_term(logits.float().gather(-1, index))
        boxes, wanted = boxes.float(), targets.boxes[None]
        distance = torch.cdist(boxes, wanted.expand(len(boxes), -1, -1, -1), p=1)
        overlap = pairwise_generalized_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(wanted))
        return self.class_cost * classes + self.bbox_cost * distance - self.giou_cost * overlap

    def class_term(self, logits: Tensor) -> Tensor:
        """Focal cost of an object whose class has these logits, elementwise."""
        probability = logits.sigmoid()
        present = self.alpha * (1 - probability) ** self.gamma * -(probability + 1e-8).log()
        absent = (1 - self.alpha) * probability**self.gamma * -(1 - probability + 1e-8).log()
        return present - absent


def assign(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of the cheapest assignment of [queries, objects].

    Queries whose costs are not finite are matched first: the loss then is not finite either, and the training loop
    says so (`training.step_guard`).
    """
    finite = np.isfinite(cost).all(axis=1)
    if finite.all():
        return linear_sum_assignment(cost)
    pairs = min(cost.shape)
    return np.argsort(finite, kind="stable")[:pairs], np.arange(pairs)
