"""The predictions of all stages as rows of one tensor, so that each step of the loss is one kernel for all of them.

Shape legend: B batch, N rows (the queries of all stages, stage after stage), S stages of a stack, Q queries of a stage,
C classes, T all stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rtdetr_tool.ops.precision import at_least_float32

Stack = tuple[Tensor, Tensor]  # logits [S, B, Q, C], boxes [S, B, Q, 4] cxcywh 0..1


class Rows(NamedTuple):
    """Predictions in at least float32."""

    logits: Tensor  # [B, N, C]
    boxes: Tensor  # [B, N, 4] cxcywh 0..1
    stacks: tuple[tuple[int, int], ...]  # (stages, queries of a stage) of the stacks that they consist of

    @classmethod
    def of(cls, stacks: Sequence[Stack]) -> Rows:
        logits = at_least_float32(joined([logits for logits, _ in stacks]))
        boxes = at_least_float32(joined([boxes for _, boxes in stacks]))
        return cls(logits, boxes, tuple((len(logits), int(logits.shape[2])) for logits, _ in stacks))

    def leading(self, count: int) -> Rows:
        """The rows of the first `count` stacks, without their gradient."""
        stacks = self.stacks[:count]
        end = sum(stages * queries for stages, queries in stacks)
        return Rows(self.logits[:, :end].detach(), self.boxes[:, :end].detach(), stacks)

    @property
    def stages(self) -> int:
        return sum(stages for stages, _ in self.stacks)

    def sum_by_stage(self, values: Tensor) -> Tensor:
        """Sum values [B, N, C] over each stage -> [T]."""
        sizes = [stages * queries for stages, queries in self.stacks]
        parts = zip(values.split(sizes, dim=1), self.stacks, strict=True)
        sums = [part.unflatten(1, stack).sum((0, 2, 3)) for part, stack in parts]
        return sums[0] if len(sums) == 1 else torch.cat(sums)


def joined(stacks: Sequence[Tensor]) -> Tensor:
    """Stacks [S, B, Q, X], with different S and Q, as rows [B, N, X]."""
    stages = [stage for stack in stacks for stage in stack.unbind()]
    return stages[0] if len(stages) == 1 else torch.cat(stages, dim=1)
