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
from rtdetr_tool.losses.matcher import HungarianMatcher, Matches, PaddedTargets
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
        stacks = self._stacks(predictions)
        counts = [count * groups for count in padded.counts]
        normalizer = count_objects(counts, predictions.logits.device, across_processes=self.training)
        tensors = [(logits.float(), boxes.float()) for logits, boxes, _ in stacks]
        parts: list[Any] = []
        further: list[Tensor] = []
        if self.head_loss is not None:
            parts, truth = self.head_loss.stacks(predictions, self.aux_loss), self.head_loss.truth(targets)
            further = self.head_loss.costs(parts, truth)
        matches_of_stacks = self.matcher.match([(a.detach(), b.detach()) for a, b in tensors], padded, groups, further)
        losses: dict[str, Tensor] = {}
        for (logits, boxes), (_, _, names), matches in zip(tensors, stacks, matches_of_stacks, strict=True):
            losses |= self._losses(logits, boxes, matches, padded, normalizer, names)
        for part, (logits, _), (_, _, names), matches in zip(parts, tensors, stacks, matches_of_stacks, strict=False):
            pairs = [groups * min(count, logits.shape[2] // groups) for count in padded.counts]
            assert self.head_loss is not None  # otherwise there are no parts
            for term, sums in self.head_loss.sums(part, matches, pairs, truth).items():
                each = zip(names, (sums / normalizer).unbind(), strict=True)
                losses |= {f"{term}{end}": value for end, value in each}
        losses["loss"] = torch.stack(list(losses.values())).sum()
        if torch.is_grad_enabled():
            losses["loss"] = losses["loss"] + self._unsupervised(predictions)
        return losses

    def _stacks(self, predictions: Predictions) -> list[tuple[Tensor, Tensor, list[str]]]:
        """Logits, boxes and the names' endings: the decoder layers, then the encoder, which may select less queries."""
        if not isinstance(predictions, TrainingPredictions) or not self.aux_loss:
            return [(predictions.logits[None], predictions.boxes[None], [""])]
        layers = len(predictions.layer_logits)
        names = [*(f"_{index}" for index in range(layers - 1)), ""]
        return [
            (predictions.layer_logits, predictions.layer_boxes, names),
            (predictions.encoder_logits[None], predictions.encoder_boxes[None], ["_enc"]),
        ]

    def class_loss(self, logits: Tensor, positive: tuple[Tensor, ...], quality: Tensor) -> Tensor:
        return iou_aware_bce(logits, positive, quality, self.alpha)


def iou_aware_bce(logits: Tensor, positive: tuple[Tensor, ...], quality: Tensor, alpha: float = 0.25) -> Tensor:
    """Binary cross-entropy summed per stage: logits [S, B, Q, C] -> [S].

    An entry with probability p that is not matched has target 0 and weight p^2 (which passes a gradient). A matched one
    has the soft target t = p^alpha * IoU^(1 - alpha), at least 0.01, which passes none.

    Args:
        positive: index tensors [P] of (stage, image, query, class) of the matched entries, each at most once.
        quality: [P], IoU of the matched boxes.
    """
    matched = logits[positive]
    with torch.no_grad():
        target = (matched.sigmoid() ** alpha * quality ** (1 - alpha)).clamp(min=_LEAST_TARGET)
    # x - log sigmoid(x) = softplus(x); every entry first counts as not matched, so that nothing is scattered
    correction = (1 - target) * matched + F.softplus(-matched) - _absent(matched)
    return _absent(logits).flatten(1).sum(1) + sum_by_stage(correction, positive[0], len(logits))


def _absent(logits: Tensor) -> Tensor:
    """Loss of entries without an object."""
    return logits.sigmoid().square() * F.softplus(logits)
