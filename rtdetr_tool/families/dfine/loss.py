"""D-FINE's training loss (arXiv:2410.13842): varifocal, L1, GIoU, fine-grained localization, self-distillation.

Classes have a matching of their own at each stage. Boxes of all stages have the union of these matchings (GO-LSD,
section 4.2): a query that any stage matches is supervised at every stage, with the object that most stages gave it.

Shape legend: S stages, L decoder layers, B batch, Q queries, C classes, M maximum objects per image, P matched pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rtdetr_tool.families.dfine.edge_losses import Balance, Supervised, distillation, localization
from rtdetr_tool.families.dfine.model.distribution import bin_offsets
from rtdetr_tool.families.dfine.model.predictions import DFINEDenoising, DFINEPredictions
from rtdetr_tool.losses.criterion import SetCriterion, average_counts, denoising_matches
from rtdetr_tool.losses.matcher import HungarianMatcher, Matches, PaddedTargets
from rtdetr_tool.ops.boxes import cxcywh_ious
from rtdetr_tool.ops.precision import at_least_float32
from rtdetr_tool.ops.structures import Predictions, Target


class Stages(NamedTuple):
    """Predictions that are supervised alike: first those of L decoder layers, then others without distributions."""

    logits: Tensor  # [S, B, Q, C]
    boxes: Tensor  # [S, B, Q, 4] cxcywh 0..1
    corners: Tensor  # [L, B, Q, 4 * (R + 1)]
    references: Tensor  # [B, Q, 4]
    names: list[str]  # the ending of each stage's losses


class DFINECriterion(SetCriterion):
    """Losses of a batch by the names of the official code.

    `loss_vfl` (or `loss_mal`), `loss_bbox`, `loss_giou` and `loss_fgl` belong to the last layer; the suffix `_aux_i`
    (also of `loss_ddf`) to decoder layer i, `_pre` to the first layer's box before refinement, `_enc_0` to the encoder,
    `_dn_i` and `_dn_pre` to the denoising queries.

    Args:
        weights: coefficients of `loss_vfl` or `loss_mal`, `loss_bbox`, `loss_giou`, `loss_fgl`, `loss_ddf`.
        aux_loss: as of `SetCriterion`; without it, boxes have the matching of the last layer.
    """

    offsets: Tensor

    def __init__(
        self,
        matcher: HungarianMatcher,
        weights: dict[str, float],
        reg_max: int = 32,
        reg_scale: float = 4.0,
        alpha: float = 0.75,
        gamma: float = 2.0,
        aux_loss: bool = True,
        class_loss: str = "vfl",
    ) -> None:
        super().__init__(matcher, weights, (class_loss, "boxes"), alpha, gamma, aux_loss)
        self.reg_scale = reg_scale
        self.register_buffer("offsets", bin_offsets(reg_max, reg_scale), persistent=False)

    @property
    def main_terms(self) -> tuple[str, ...]:
        return (*super().main_terms, "loss_fgl")

    def forward(self, predictions: Predictions, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Weighted losses by name and their sum `loss`; without distributions (eval mode) the first three only."""
        if not isinstance(predictions, DFINEPredictions):
            return super().forward(predictions, targets)
        padded = PaddedTargets.of(targets)
        noisy = predictions.denoising
        assert noisy is None or isinstance(noisy, DFINEDenoising)  # as the decoder makes them
        denoised = 0 if noisy is None else sum(map(len, noisy.object_index)) // noisy.groups
        counts = [sum(padded.counts), denoised]
        count, noisy_count = average_counts(counts, predictions.logits.device, across_processes=self.training)
        stages = self._stages(predictions)
        matches = self.matcher(stages.logits.detach(), stages.boxes.detach(), padded)
        union = union_of(matches, padded, stages.logits.shape[2])
        pairs = average_pairs(union.matched.sum(), across_processes=self.training)
        balance = Balance.of(union.matched)
        losses = self._stage_losses(stages, matches, union, padded, (count, pairs), balance)
        if noisy is not None:
            stages = self._denoising_stages(noisy)
            matches = denoising_matches(noisy, len(stages.logits))
            supervised = supervised_by(matches, padded, stages.logits.shape[2])
            noisy_count = noisy_count * noisy.groups
            losses |= self._stage_losses(stages, matches, supervised, padded, (noisy_count, noisy_count), balance)
        losses["loss"] = torch.stack(list(losses.values())).sum()
        if torch.is_grad_enabled() and not self.aux_loss:
            losses["loss"] = losses["loss"] + self._unsupervised(predictions)
        return losses

    def _stages(self, predictions: DFINEPredictions) -> Stages:
        layers = len(predictions.layer_logits)
        names = [*(f"_aux_{index}" for index in range(layers - 1)), "", "_pre", "_enc_0"]
        further = (
            (predictions.first_logits, predictions.first_boxes),
            (predictions.encoder_logits, predictions.encoder_boxes),
        )
        stages = _stacked(predictions.layer_logits, predictions.layer_boxes, further)
        return self._supervised(Stages(*stages, predictions.layer_corners, predictions.references, names))

    def _denoising_stages(self, noisy: DFINEDenoising) -> Stages:
        names = [*(f"_dn_{index}" for index in range(len(noisy.logits))), "_dn_pre"]
        stages = _stacked(noisy.logits, noisy.boxes, [(noisy.first_logits, noisy.first_boxes)])
        return self._supervised(Stages(*stages, noisy.corners, noisy.references, names))

    def _supervised(self, stages: Stages) -> Stages:
        """All stages, or the last layer alone without `aux_loss`."""
        if self.aux_loss:
            return stages
        last = slice(len(stages.corners) - 1, len(stages.corners))
        return Stages(
            stages.logits[last], stages.boxes[last], stages.corners[last], stages.references, stages.names[last]
        )

    def _stage_losses(
        self,
        stages: Stages,
        matches: Matches,
        targets: Supervised,
        padded: PaddedTargets,
        counts: tuple[Tensor | float, Tensor | float],
        balance: Balance,
    ) -> dict[str, Tensor]:
        """Losses of classes by `matches` and of boxes by `targets`; `counts` normalize both."""
        layers = len(stages.corners)
        iou, generalized = cxcywh_ious(stages.boxes, targets.boxes)  # [S, B, Q]
        overlap = iou.detach()
        distance = ((stages.boxes - targets.boxes).abs().sum(-1) * targets.matched).sum((1, 2))
        separation = ((1 - generalized) * targets.matched).sum((1, 2))
        edges = localization(stages.corners, stages.references, targets, overlap[:layers], self.offsets, self.reg_scale)
        follow = distillation(stages.corners, stages.logits[layers - 1], targets, overlap[:layers], balance)
        terms = {
            self.class_term: self._class_losses(stages, matches, padded) / counts[0],
            "loss_bbox": distance / counts[1],
            "loss_giou": separation / counts[1],
            "loss_fgl": edges / counts[1],
            "loss_ddf": follow,
        }
        return {
            f"{name}{ending}": value
            for name, values in terms.items()
            for ending, value in zip(stages.names, (values * self.weights[name]).unbind(), strict=False)
        }

    def _class_losses(self, stages: Stages, matches: Matches, padded: PaddedTargets) -> Tensor:
        """[S], with the IoU of the pairs of each stage as quality."""
        source = stages.boxes.detach()[matches.stage, matches.image, matches.query]
        target = padded.boxes[matches.image, matches.target]
        quality = cxcywh_ious(source, target)[0]
        label = padded.labels[matches.image, matches.target]
        positive = (matches.stage, matches.image, matches.query, label)
        return self.class_terms(stages.logits, positive, quality).flatten(1).sum(1)

    def _unsupervised(self, predictions: Predictions) -> Tensor | float:
        assert isinstance(predictions, DFINEPredictions)  # others are supervised by the base class
        unused = [predictions.first_logits, predictions.first_boxes]
        if isinstance(predictions.denoising, DFINEDenoising):
            unused += [predictions.denoising.first_logits, predictions.denoising.first_boxes]
        return super()._unsupervised(predictions) + sum((0.0 * tensor.sum() for tensor in unused), 0.0)


def _stacked(
    layer_logits: Tensor, layer_boxes: Tensor, further: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    logits = torch.cat([layer_logits, *(logits[None] for logits, _ in further)])
    boxes = torch.cat([layer_boxes, *(boxes[None] for _, boxes in further)])
    return at_least_float32(logits), at_least_float32(boxes)


def union_of(matches: Matches, padded: PaddedTargets, queries: int) -> Supervised:
    """The object of each query that most stages matched it with, the first one of several."""
    batch, most = padded.labels.shape
    votes = padded.boxes.new_zeros(batch * queries * max(most, 1))
    index = (matches.image * queries + matches.query) * max(most, 1) + matches.target
    votes = votes.index_add(0, index, votes.new_ones(len(index))).view(batch, queries, -1)
    return Supervised(_boxes_of(padded, votes.argmax(-1)), votes.amax(-1) > 0)


def supervised_by(matches: Matches, padded: PaddedTargets, queries: int) -> Supervised:
    """The object of each query by matches that are the same at every stage."""
    shape = (len(padded.counts), queries)
    target = matches.target.new_zeros(shape).index_put((matches.image, matches.query), matches.target)
    matched = torch.zeros(shape, dtype=torch.bool, device=target.device)
    matched[matches.image, matches.query] = True
    return Supervised(_boxes_of(padded, target), matched)


def _boxes_of(padded: PaddedTargets, target: Tensor) -> Tensor:
    """[B, Q, 4] from object indices [B, Q]; the whole image where the batch has no objects."""
    if padded.boxes.shape[1] == 0:
        return padded.boxes.new_full((*target.shape, 4), 0.5)
    return padded.boxes.gather(1, target[..., None].expand(-1, -1, 4))


def average_pairs(count: Tensor, across_processes: bool) -> Tensor:
    """The number of supervised queries per process, at least 1 (as `average_counts`, without waiting for a device)."""
    mean = count.float()
    if across_processes and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(mean)
        mean = mean / torch.distributed.get_world_size()
    return mean.clamp(min=1)
