"""RT-DETR's training loss: varifocal, L1 and GIoU for all decoder layers, the encoder and the denoising queries.

Shape legend: S stages, B batch, Q queries, C classes, P matched pairs, D denoising queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rtdetr_tool.catalog import CLASS_LOSSES, LOSS_TYPES
from rtdetr_tool.losses.functional import matchability_aware_loss, sum_by_stage, varifocal_loss
from rtdetr_tool.losses.matcher import HungarianMatcher, Matches, PaddedTargets
from rtdetr_tool.ops.boxes import both_ious, cxcywh_to_xyxy
from rtdetr_tool.ops.structures import DenoisingPredictions, Predictions, Target, TrainingPredictions


class SetCriterion(nn.Module):
    """The losses of a batch.

    Args:
        loss_types: at most one of `CLASS_LOSSES`, and `boxes`.
        weights: coefficient of `loss_vfl` or `loss_mal`, `loss_bbox`, `loss_giou`.
        alpha: weight of negatives in the varifocal loss.
        aux_loss: also supervise the earlier decoder layers and the encoder's selected tokens. Denoising queries are
            supervised in all layers with it, in the last layer without.
    """

    class_term = "loss_vfl"

    def __init__(
        self,
        matcher: HungarianMatcher,
        weights: dict[str, float],
        loss_types: Sequence[str] = LOSS_TYPES,
        alpha: float = 0.75,
        gamma: float = 2.0,
        aux_loss: bool = True,
    ) -> None:
        super().__init__()
        self.matcher = matcher
        self.weights = dict(weights)
        self.loss_types = tuple(loss_types)
        self.has_class_loss = any(name in loss_types for name in CLASS_LOSSES)
        if "mal" in loss_types:
            self.class_term = "loss_mal"
        self.alpha, self.gamma = alpha, gamma
        self.aux_loss = aux_loss

    @property
    def main_terms(self) -> tuple[str, ...]:
        """Names of the losses of the last decoder layer, which are logged as curves."""
        return (self.class_term, "loss_bbox", "loss_giou")

    def forward(self, predictions: Predictions, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Weighted losses by name and their sum `loss`.

        `loss_vfl` (or `loss_mal`), `loss_bbox` and `loss_giou` belong to the last layer, the suffix `_aux_i` to decoder
        layer i, the last `_aux_` to the encoder, and `_dn_i` to the denoising queries of layer i.
        """
        padded = PaddedTargets.of(targets)
        logits, boxes, names = self._stack(predictions)
        noisy = predictions.denoising if isinstance(predictions, TrainingPredictions) else None
        denoised = 0 if noisy is None else sum(map(len, noisy.object_index)) // noisy.groups
        count, denoised_count = average_counts(
            [sum(padded.counts), denoised], logits.device, across_processes=self.training
        )
        matches = self.matcher(logits.detach(), boxes.detach(), padded)
        losses = self._losses(logits, boxes, matches, padded, count, names)
        if noisy is not None:
            losses |= self._denoising_losses(noisy, padded, denoised_count)
        losses["loss"] = torch.stack(list(losses.values())).sum()
        if torch.is_grad_enabled():
            losses["loss"] = losses["loss"] + self._unsupervised(predictions)
        return losses

    def _unsupervised(self, predictions: Predictions) -> Tensor | float:
        """Zero as a function of the outputs that no loss uses, so that every parameter has a gradient.

        DistributedDataParallel waits for the gradient of every parameter in every step.
        """
        supervised = {"logits": self.has_class_loss, "boxes": "boxes" in self.loss_types}
        kinds = [kind for kind, used in supervised.items() if not used]
        unused = [getattr(predictions, kind) for kind in kinds]
        if isinstance(predictions, TrainingPredictions):
            if predictions.denoising is not None:
                unused += [getattr(predictions.denoising, kind) for kind in kinds]
            for kind in ("logits", "boxes") if not self.aux_loss else kinds:
                unused += [getattr(predictions, f"layer_{kind}"), getattr(predictions, f"encoder_{kind}")]
        return sum((0.0 * tensor.sum() for tensor in unused), 0.0)

    def _stack(self, predictions: Predictions) -> tuple[Tensor, Tensor, list[str]]:
        """Logits [S, B, Q, C], boxes [S, B, Q, 4] and the suffix of each stage's losses; the final layer first."""
        if not isinstance(predictions, TrainingPredictions) or not self.aux_loss:
            return predictions.logits[None], predictions.boxes[None], [""]
        logits = [predictions.logits, *predictions.layer_logits[:-1], predictions.encoder_logits]
        boxes = [predictions.boxes, *predictions.layer_boxes[:-1], predictions.encoder_boxes]
        names = ["", *(f"_aux_{i}" for i in range(len(logits) - 1))]
        return torch.stack([x.float() for x in logits]), torch.stack(boxes), names

    def _losses(
        self,
        logits: Tensor,
        boxes: Tensor,
        matches: Matches,
        targets: PaddedTargets,
        normalizer: Tensor | float,
        names: Sequence[str],
    ) -> dict[str, Tensor]:
        source = boxes[matches.stage, matches.image, matches.query].float()  # [P, 4]
        target = targets.boxes[matches.image, matches.target]
        corners, target_corners = cxcywh_to_xyxy(source), cxcywh_to_xyxy(target)
        sums: dict[str, Tensor] = {}
        iou, overlap = both_ious(corners, target_corners)
        if self.has_class_loss:
            quality = iou.detach()
            label = targets.labels[matches.image, matches.target]
            positive = (matches.stage, matches.image, matches.query, label)
            sums[self.class_term] = self.class_loss(logits, positive, quality)
        if "boxes" in self.loss_types:
            distance = (source - target).abs().sum(-1)
            sums["loss_bbox"] = sum_by_stage(distance, matches.stage, len(names))
            sums["loss_giou"] = sum_by_stage(1 - overlap, matches.stage, len(names))
        return {
            f"{key}{suffix}": value
            for key, total in sums.items()
            for suffix, value in zip(names, (total * self.weights[key] / normalizer).unbind(), strict=True)
        }

    def class_loss(self, logits: Tensor, positive: tuple[Tensor, ...], quality: Tensor) -> Tensor:
        """Class loss per stage [S] from logits [S, B, Q, C], indices of matched entries and their box IoU [P]."""
        if self.class_term == "loss_mal":
            return matchability_aware_loss(logits, positive, quality, self.gamma)
        return varifocal_loss(logits, positive, quality, self.alpha, self.gamma)

    def _denoising_losses(
        self, denoising: DenoisingPredictions, targets: PaddedTargets, count: Tensor | float
    ) -> dict[str, Tensor]:
        logits, boxes = denoising.logits, denoising.boxes
        names = [f"_dn_{i}" for i in range(len(logits))]
        if not self.aux_loss:
            logits, boxes, names = logits[-1:], boxes[-1:], names[-1:]
        matches = denoising_matches(denoising, len(logits))
        return self._losses(logits.float(), boxes, matches, targets, count * denoising.groups, names)


def denoising_matches(denoising: DenoisingPredictions, stages: int) -> Matches:
    """Match each positive query with the object it was created from, at every stage."""
    device = denoising.logits.device
    image = torch.cat([torch.full((len(index),), i) for i, index in enumerate(denoising.object_index)])
    target = torch.cat(denoising.object_index).cpu()
    stage = torch.arange(stages).repeat_interleave(len(image))
    stage, image, target = (
        torch.stack([stage, image.repeat(stages), target.repeat(stages)]).to(device, non_blocking=True).unbind()
    )
    return Matches(stage, image, torch.cat(denoising.positive_index).repeat(stages), target)


def count_objects(counts: Sequence[int], device: torch.device, across_processes: bool) -> Tensor | float:
    """Number of objects per process, at least 1: the normalizer of all losses (see `average_counts`)."""
    return average_counts([sum(counts)], device, across_processes)[0]


def average_counts(totals: Sequence[int], device: torch.device, across_processes: bool) -> list[Tensor | float]:
    """Numbers of objects per process, each at least 1.

    In training they are averaged over all processes. In evaluation each process uses its own count, because processes
    may have different numbers of batches and must not wait for each other.
    """
    group = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not (across_processes and group):
        return [max(float(total), 1.0) for total in totals]
    means = torch.tensor(totals, dtype=torch.float32, device=device)
    torch.distributed.all_reduce(means)
    return list((means / torch.distributed.get_world_size()).clamp(min=1).unbind())
