"""Keypoint losses: distance, cross-entropy of being findable and visible, and likelihood, for matching and loss.

As in Roboflow's rfdetr 1.11: distances are relative to the object, whose size is the square root of its box area. The
likelihood is that of a normal distribution with the predicted precision, without its constant, so it may be negative.
A keypoint with visibility 0 is not labeled: it has no location, and its target for findable is 0.

Shape legend: S stages, B batch, Q queries, M maximum objects per image, C classes with keypoints, P most keypoints of a
class, N matched pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rtdetr_tool.errors import UserError
from rtdetr_tool.losses.functional import sum_by_stage
from rtdetr_tool.losses.matcher import Matches
from rtdetr_tool.ops.precision import at_least_float32
from rtdetr_tool.ops.structures import KeypointPredictions, Predictions, Target, TrainingPredictions

_FINDABLE, _VISIBLE = 2, 3  # channels


@dataclass
class TrueKeypoints:
    """Target keypoints of a batch; rows of padding are not labeled."""

    points: Tensor  # [B, M, P, 3]: x, y relative to the input, and COCO's visibility 0, 1, 2
    labels: Tensor  # [B, M]
    areas: Tensor  # [B, M], of the boxes, relative to the input
    active: Tensor  # [B, M, P]: the keypoints that the class has


class KeypointLoss:
    """Weighted losses of keypoints.

    Args:
        counts: number of keypoints by class index; classes beyond have none.
    """

    terms = ("loss_keypoints_l1", "loss_keypoints_findable", "loss_keypoints_visible", "loss_keypoints_nll")

    def __init__(
        self,
        counts: Sequence[int],
        l1_weight: float = 1.0,
        findable_weight: float = 1.0,
        visible_weight: float = 1.0,
        nll_weight: float = 1.0,
    ) -> None:
        self.counts = tuple(counts)
        self.weights = (l1_weight, findable_weight, visible_weight, nll_weight)

    def stacks(self, predictions: Predictions, aux_loss: bool) -> list[KeypointPredictions]:
        """Keypoints of the stages that are supervised: the decoder layers, then the encoder."""
        if not isinstance(predictions, TrainingPredictions) or not aux_loss:
            assert predictions.keypoints is not None  # a detector trained with this loss predicts keypoints
            return [predictions.keypoints.map(lambda values: values[None])]
        layers, encoder = predictions.layer_keypoints, predictions.encoder_keypoints
        assert layers is not None and encoder is not None
        return [layers, encoder.map(lambda values: values[None])]

    def truth(self, targets: Sequence[Target]) -> TrueKeypoints:
        """The targets of a batch; UserError if they have no keypoints."""
        if any(target.keypoints is None for target in targets):
            raise UserError(
                'the model predicts keypoints, but the targets have none; load the dataset with kind="keypoints"'
            )
        most = max(self.counts)
        rows = [_resized(target.keypoints, most) for target in targets if target.keypoints is not None]
        labels = pad_sequence([target.labels for target in targets], batch_first=True)
        boxes = pad_sequence([target.boxes for target in targets], batch_first=True)
        counts = torch.tensor([*self.counts, 0], device=labels.device)[labels.clamp(max=len(self.counts))]
        active = torch.arange(most, device=labels.device) < counts[..., None]
        return TrueKeypoints(pad_sequence(rows, batch_first=True), labels, boxes[..., 2] * boxes[..., 3], active)

    @torch.no_grad()
    def costs(self, stacks: Sequence[KeypointPredictions], truth: TrueKeypoints) -> list[Tensor]:
        """Matching costs [S, B, Q, M] of each stack."""
        return [
            torch.stack([self._stage_costs(stage, truth) for stage in at_least_float32(stack.values)])
            for stack in stacks
        ]

    def _stage_costs(self, values: Tensor, truth: TrueKeypoints) -> Tensor:
        """Matching costs [B, Q, M] from values [B, Q, C * P, 8], image by image: all pairs of one take much memory."""
        costs = []
        for image, found in enumerate(values.unflatten(2, (len(self.counts), -1))):
            one = replace(truth, **{name: getattr(truth, name)[image] for name in vars(truth)})
            of_class = found[:, one.labels.clamp(max=len(self.counts) - 1)]  # [Q, M, P, 8]
            weighted = (weight * term for weight, term in zip(self.weights, _terms(of_class, one), strict=True))
            costs.append(sum(weighted, torch.zeros_like(of_class[..., 0, 0])))
        return torch.stack(costs)

    def sums(
        self, stack: KeypointPredictions, matches: Matches, pairs: Sequence[int], truth: TrueKeypoints
    ) -> dict[str, Tensor]:
        """Weighted losses by name, summed over the pairs of each stage, [S]."""
        values = at_least_float32(stack.values)[matches.stage, matches.image, matches.query]  # [N, C * P, 8]
        matched = replace(truth, **{name: getattr(truth, name)[matches.image, matches.target] for name in vars(truth)})
        rows = torch.arange(len(values), device=values.device)
        labels = matched.labels.clamp(max=len(self.counts) - 1)
        predicted = values.unflatten(1, (len(self.counts), -1))[rows, labels]  # [N, P, 8]
        terms = zip(self.terms, self.weights, _terms(predicted, matched), strict=True)
        return {name: sum_by_stage(weight * term, matches.stage, len(stack.values)) for name, weight, term in terms}


def _resized(points: Tensor, most: int) -> Tensor:
    """Points [N, any, 3] with `most` keypoints each."""
    return F.pad(points, (0, 0, 0, most - points.shape[1]))


def _terms(predicted: Tensor, truth: TrueKeypoints) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distance, findable, visible and likelihood [...], means over the keypoints of predicted [..., P, 8].

    The fields of `truth` are broadcast to [..., P].
    """
    points = truth.points.to(predicted.dtype)
    areas = truth.areas.to(predicted.dtype)
    known = areas > torch.finfo(torch.float32).eps
    areas = torch.where(known, areas, 1.0)[..., None]
    labeled = truth.active & (points[..., 2] > 0) & known[..., None]
    offset = predicted[..., :2] - points[..., :2]
    distance = _mean(offset.abs().sum(-1) / areas.sqrt(), labeled)
    findable = _cross_entropy(predicted[..., _FINDABLE], points[..., 2] > 0, truth.active)
    visible = _cross_entropy(predicted[..., _VISIBLE], points[..., 2] > 1, truth.active)
    return distance, findable, visible, _negative_log_likelihood(offset, predicted[..., 4:7], areas, labeled)


def _cross_entropy(logits: Tensor, labels: Tensor, active: Tensor) -> Tensor:
    return _mean(F.softplus(logits) - logits * labels.to(logits.dtype), active)


def _negative_log_likelihood(offset: Tensor, factors: Tensor, areas: Tensor, labeled: Tensor) -> Tensor:
    """Of offsets [..., P, 2] from a normal distribution, given as log l11, l21, log l22 [..., P, 3].

    Precisions that overflow are skipped; they are replaced before the computation, so that gradients stay finite.
    """
    with torch.no_grad():
        finite = _mahalanobis(offset, factors).isfinite()
    usable = labeled & finite
    offset = torch.where(usable[..., None], offset, 0.0)
    factors = torch.where(usable[..., None], factors, 0.0)
    likelihood = 0.5 * _mahalanobis(offset, factors) / areas - (factors[..., 0] + factors[..., 2])
    return _mean(likelihood, usable)


def _mahalanobis(offset: Tensor, factors: Tensor) -> Tensor:
    """Squared length of the offsets multiplied by the triangular matrix."""
    x, y = offset.unbind(-1)
    first = factors[..., 0].exp() * x + factors[..., 1] * y
    second = factors[..., 2].exp() * y
    return first.square() + second.square()


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Mean over the last axis of the values where the mask holds, 0 without any."""
    where = where.expand_as(values)
    return torch.where(where, values, 0.0).sum(-1) / where.sum(-1).clamp(min=1)
