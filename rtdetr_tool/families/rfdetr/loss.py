"""RF-DETR's training loss: class, L1 and GIoU over all groups of queries, decoder layers and the encoder.

Group DETR (Chen et al. 2022, arXiv:2207.13085): within each group of queries every object has one match. The class loss
is that of Align-DETR (Cai et al. 2023, arXiv:2304.07527), as in LW-DETR.

Shape legend: S stages, B batch, G groups, Q queries of a group, C class logits, P matched pairs, M most objects of an
image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rtdetr_tool.losses.criterion import SetCriterion, count_objects
from rtdetr_tool.losses.functional import sum_by_stage
from rtdetr_tool.losses.matcher import HungarianMatcher, Matches, PaddedTargets, split_matches
from rtdetr_tool.losses.rows import Rows, Stack, joined
from rtdetr_tool.ops.structures import Predictions, Target, TrainingPredictions

_LEAST_TARGET = 0.01  # of a matched class, however low its IoU


class HeadLoss(Protocol):
    """Losses of what a model predicts in addition to boxes. A stack is what it predicts at some stages."""

    @property
    def terms(self) -> tuple[str, ...]: ...

    def stacks(self, predictions: Predictions, aux_loss: bool) -> list[Any]:
        """What is predicted at the decoder layers and, with `aux_loss` in training, at the encoder."""

    def truth(self, targets: Sequence[Target]) -> Any:
        """The targets of a batch."""

    def costs(self, stacks: Sequence[Any], truth: Any) -> list[Tensor]:
        """Matching costs [S, B, Q, M] of each stack."""

    def sums(self, stack: Any, matches: Matches, pairs: Sequence[int], truth: Any) -> Mapping[str, Tensor]:
        """Weighted losses by name, summed over the pairs of each stage, [S]; `pairs` is their number per image."""


class GroupMatcher(HungarianMatcher):
    """Hungarian matching within each group of queries; its class cost does not clamp small probabilities."""

    def class_term(self, logits: Tensor) -> Tensor:
        probability = logits.sigmoid()
        present = self.alpha * (1 - probability) ** self.gamma * F.softplus(-logits)
        absent = (1 - self.alpha) * probability**self.gamma * F.softplus(logits)
        return present - absent


class RFDETRCriterion(SetCriterion):
    """Losses of a batch by RF-DETR's names: `loss_ce`, `loss_bbox` and `loss_giou` of the last layer, `_i` of decoder
    layer i, `_enc` of the encoder's selection.

    Args:
        matcher: a `GroupMatcher`.
        group_detr: groups of queries in what the detector gives in training mode.
        focal_alpha: how much of a matched class's target is its own probability, the rest is the IoU.
        head_loss: of models that also predict masks or keypoints; its costs count in the matching, too.
    """

    class_term = "loss_ce"
    matcher: GroupMatcher

    def __init__(
        self,
        matcher: GroupMatcher,
        weights: dict[str, float],
        group_detr: int = 13,
        focal_alpha: float = 0.25,
        aux_loss: bool = True,
        head_loss: HeadLoss | None = None,
    ) -> None:
        super().__init__(matcher, weights, alpha=focal_alpha, aux_loss=aux_loss)
        self.group_detr = group_detr
        self.head_loss = head_loss

    @property
    def main_terms(self) -> tuple[str, ...]:
        return (*super().main_terms, *(self.head_loss.terms if self.head_loss else ()))

    def forward(self, predictions: Predictions, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Weighted losses by name and their sum `loss`; all are per object and group."""
        padded = PaddedTargets.of(targets)
        groups = self.group_detr if isinstance(predictions, TrainingPredictions) else 1
        stacks, names = self._matched_stacks(predictions)
        counts = [count * groups for count in padded.counts]
        normalizer = count_objects(counts, predictions.logits.device, across_processes=self.training)
        rows = Rows.of(stacks)
        parts: list[Any] = []
        costs: list[Tensor] = []
        if self.head_loss is not None:
            parts, truth = self.head_loss.stacks(predictions, self.aux_loss), self.head_loss.truth(targets)
            costs = self.head_loss.costs(parts, truth)
        extra = joined(costs) if costs else None
        table = self.matcher.match_rows(rows.leading(len(stacks)), padded, groups, extra)
        sums: list[Mapping[str, Tensor]] = []
        for index, (part, matches) in enumerate(zip(parts, split_matches(table, rows, padded, groups), strict=False)):
            pairs = [groups * min(count, rows.stacks[index][1] // groups) for count in padded.counts]
            assert self.head_loss is not None  # otherwise there are no parts
            sums.append(self.head_loss.sums(part, matches, pairs, truth))
        further = {name: torch.cat([of[name] for of in sums]) for name in (sums[0] if sums else ())}
        losses = self._losses(rows, Matches(*table), padded, [normalizer] * len(names), names, further)
        if torch.is_grad_enabled():
            losses["loss"] = losses["loss"] + self._unsupervised(predictions)
        return losses

    def _matched_stacks(self, predictions: Predictions) -> tuple[list[Stack], list[str]]:
        """The decoder layers, then the encoder, which may select less queries, and the names' endings."""
        stacks, names = super()._matched_stacks(predictions)
        layers = len(names) - 1
        return stacks, [*(f"_{index}" for index in range(layers - 1)), "", "_enc"] if layers else names

    def class_loss(self, rows: Rows, matches: Matches, label: Tensor, quality: Tensor) -> Tensor:
        absent, correction = iou_aware_bce(rows.logits, (matches.image, matches.row, label), quality, self.alpha)
        if self.class_weights is not None:
            absent, correction = absent * self.class_weights, correction * self.class_weights[label]
        return rows.sum_by_stage(absent) + sum_by_stage(correction, matches.stage, rows.stages)


def iou_aware_bce(
    logits: Tensor, positive: tuple[Tensor, ...], quality: Tensor, alpha: float = 0.25
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of every entry as if none were matched, in the shape of the logits, and what the matched
    ones add to it, [P].

    An entry with probability p that is not matched has target 0 and weight p^2 (which passes a gradient). A matched one
    has the soft target t = p^alpha * IoU^(1 - alpha), at least 0.01, which passes none.

    Args:
        positive: index tensors [P], one per axis, of the matched entries, each at most once.
        quality: [P], IoU of the matched boxes.
    """
    matched = logits[positive]
    with torch.no_grad():
        target = (matched.sigmoid() ** alpha * quality ** (1 - alpha)).clamp(min=_LEAST_TARGET)
    # cross-entropy with target t = softplus(x) - t * x
    return _absent(logits), F.softplus(matched) - target * matched - _absent(matched)


def _absent(logits: Tensor) -> Tensor:
    """Loss of entries without an object."""
    return logits.sigmoid().square() * F.softplus(logits)
