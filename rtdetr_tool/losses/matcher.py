"""Hungarian matching of queries and objects, for all decoder layers and images of a step at once.

DETR (Carion et al. 2020, arXiv:2005.12872) with the focal class cost of Deformable DETR (arXiv:2010.04159).

Shape legend: S stages (decoder layers, then the encoder), B batch, Q queries, N rows (the queries of all stages), C
classes, M maximum objects per image, P matched pairs of all stages and images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rtdetr_tool.losses.assignment import assign_rows
from rtdetr_tool.losses.rows import Rows, Stack
from rtdetr_tool.ops.boxes import pairwise_cxcywh_generalized_iou
from rtdetr_tool.ops.precision import at_least_float32
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
    """Matched pairs as index tensors [P]: pair p matches query `query` of `image` at `stage` with object `target`.

    Among the queries of all stages, it is number `row` (see `losses.rows`).
    """

    stage: Tensor
    image: Tensor
    query: Tensor
    target: Tensor
    row: Tensor


class HungarianMatcher:
    """Minimizes `class_cost * focal + bbox_cost * L1 - giou_cost * GIoU` over one-to-one assignments.

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

    def __call__(self, logits: Tensor, boxes: Tensor, targets: PaddedTargets) -> Matches:
        """Match logits [S, B, Q, C] and boxes [S, B, Q, 4] cxcywh 0..1, with one copy to the host and one back."""
        return self.match([(logits, boxes)], targets)[0]

    def match(self, stacks: Sequence[Stack], targets: PaddedTargets) -> list[Matches]:
        """One `Matches` per stack of different sizes, with one copy to the host and one back for all of them."""
        rows = Rows.of(stacks)
        return split_matches(self.match_rows(rows, targets), rows, targets)

    @torch.no_grad()
    def match_rows(self, rows: Rows, targets: PaddedTargets, groups: int = 1, extra: Tensor | None = None) -> Tensor:
        """The fields of `Matches` as [5, P]; stages are counted over all stacks.

        Args:
            groups: groups of queries in each stage. Within each, every object has one match.
            extra: one more cost [B, N, M].
        """
        if not any(targets.counts):
            return torch.zeros(5, 0, dtype=torch.long, device=rows.logits.device)
        cost = self.cost(rows.logits[None], rows.boxes[None], targets)[0]
        return assign_rows(cost if extra is None else cost + extra, rows.stacks, targets.counts, groups)

    def cost(self, logits: Tensor, boxes: Tensor, targets: PaddedTargets) -> Tensor:
        """Matching cost [S, B, Q, M]; columns of padding are meaningless."""
        index = targets.labels[None, :, None].expand(logits.shape[0], -1, logits.shape[2], -1)
        classes = self.class_term(at_least_float32(logits).gather(-1, index))
        boxes = at_least_float32(boxes)
        truth = targets.boxes[None].to(boxes.dtype)
        distance = torch.cdist(boxes, truth.expand(len(boxes), -1, -1, -1), p=1)
        overlap = pairwise_cxcywh_generalized_iou(boxes, truth)
        return self.class_cost * classes + self.bbox_cost * distance - self.giou_cost * overlap

    def class_term(self, logits: Tensor) -> Tensor:
        """Elementwise focal cost of matching an object whose class has these logits."""
        probability = logits.sigmoid()
        present = self.alpha * (1 - probability) ** self.gamma * -(probability + 1e-8).log()
        absent = (1 - self.alpha) * probability**self.gamma * -(1 - probability + 1e-8).log()
        return present - absent


def split_matches(table: Tensor, rows: Rows, targets: PaddedTargets, groups: int = 1) -> list[Matches]:
    """The result of `match_rows` as one `Matches` per stack, with stages counted from 0 in each."""
    pairs = [
        stages * sum(groups * min(count, queries // groups) for count in targets.counts)
        for stages, queries in rows.stacks
    ]
    matches, first = [], 0
    for part, (stages, _) in zip(table.split(pairs, dim=1), rows.stacks, strict=True):
        stage, *indices = part.unbind()
        matches.append(Matches(stage - first if first else stage, *indices))
        first += stages
    return matches
