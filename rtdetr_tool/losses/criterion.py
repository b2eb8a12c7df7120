"""RT-DETR's training loss: varifocal, L1 and GIoU over all decoder layers, the encoder and the denoising queries.

Shape legend: S stages, B batch, Q queries, C classes, P matched pairs, D denoising queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rtdetr_tool.losses.functional import sum_by_stage, varifocal_loss
from rtdetr_tool.losses.matcher import HungarianMatcher, Matches, PaddedTargets
from rtdetr_tool.ops.boxes import box_iou, cxcywh_to_xyxy, generalized_box_iou
from rtdetr_tool.ops.structures import DenoisingPredictions, Predictions, Target

LOSS_TYPES = ("vfl", "boxes")


class SetCriterion(nn.Module):
    """Losses of a batch.

    Args:
        loss_types: subset of `vfl`, `boxes`.
        weights: coefficient of `loss_vfl`, `loss_bbox`, `loss_giou`.
        aux_loss: also supervise the earlier decoder layers and the encoder's selection. Denoising queries follow the
            same rule: all layers with it, the last one without.
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
        self.alpha, self.gamma = alpha, gamma
        self.aux_loss = aux_loss

    @property
    def main_terms(self) -> tuple[str, ...]:
        """Names of the losses of the last decoder layer, which are worth a curve."""
        return (self.class_term, "loss_bbox", "loss_giou")

    def forward(self, predictions: Predictions, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Weighted losses by name and their sum `loss`.

        `loss_vfl`, `loss_bbox` and `loss_giou` are those of the last layer; `_aux_i` is decoder layer i, the last
        `_aux_` the encoder, `_dn_i` the denoising queries of layer i.
        """
        padded = PaddedTargets.of(targets)
        logits, boxes, names = self._stack(predictions)
        noisy = predictions.denoising
        denoised = 0 if noisy is None else sum(map(len, noisy.object_index)) // noisy.groups
        count, denoised = counted([sum(padded.counts), denoised], logits.device, across_processes=self.training)
        matches = self.matcher(logits.detach(), boxes.detach(), padded)
        losses = self._losses(logits, boxes, matches, padded, count, names)
        if noisy is not None:
            losses |= self._denoising_losses(noisy, padded, denoised)
        losses["loss"] = torch.stack(list(losses.values())).sum()
        if torch.is_grad_enabled():
            losses["loss"] = losses["loss"] + self._unsupervised(predictions)
        return losses

    def _unsupervised(self, predictions: Predictions) -> Tensor | float:
        """Zero, but a function of the outputs that no loss reads, so that every parameter has a gradient.

        With several processes, DistributedDataParallel waits for the gradient of each parameter in each step.
        """
        kinds = [kind for kind, loss in (("logits", "vfl"), ("boxes", "boxes")) if loss not in self.loss_types]
        sources = [predictions, predictions.denoising]
        unread = [getattr(source, kind) for source in sources if source is not None for kind in kinds]
        stages = ("layer_", "encoder_")
        unread += [
            getattr(predictions, f"{stage}{kind}")
            for stage in stages
            for kind in ("logits", "boxes")
            if kind in kinds or not self.aux_loss
        ]
        return sum((0.0 * tensor.sum() for tensor in unread if tensor is not None), 0.0)

    def _stack(self, predictions: Predictions) -> tuple[Tensor, Tensor, list[str]]:
        """Logits [S, B, Q, C], boxes [S, B, Q, 4] and the suffix of each stage's losses; the final layer first."""
        if predictions.layer_logits is None or not self.aux_loss:
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
        normaliser: Tensor | float,
        names: Sequence[str],
    ) -> dict[str, Tensor]:
        source = boxes[matches.stage, matches.image, matches.query].float()  # [P, 4]
        wanted = targets.boxes[matches.image, matches.target]
        corners, wanted_corners = cxcywh_to_xyxy(source), cxcywh_to_xyxy(wanted)
        sums: dict[str, Tensor] = {}
        if "vfl" in self.loss_types:
            quality = box_iou(corners.detach(), wanted_corners)
            label = targets.labels[matches.image, matches.target]
            positive = (matches.stage, matches.image, matches.query, label)
            sums[self.class_term] = self.class_loss(logits, positive, quality)
        if "boxes" in self.loss_types:
            distance = (source - wanted).abs().sum(-1)
            overlap = generalized_box_iou(corners, wanted_corners)
            sums["loss_bbox"] = sum_by_stage(distance, matches.stage, len(names))
            sums["loss_giou"] = sum_by_stage(1 - overlap, matches.stage, len(names))
        return {
            f"{key}{suffix}": value
            for key, total in sums.items()
            for suffix, value in zip(names, (total * self.weights[key] / normaliser).unbind(), strict=True)
        }

    def class_loss(self, logits: Tensor, positive: tuple[Tensor, ...], quality: Tensor) -> Tensor:
        """[S] from logits [S, B, Q, C], the indices of matched entries and the IoU of their boxes [P]."""
        return varifocal_loss(logits, positive, quality, self.alpha, self.gamma)

    def _denoising_losses(
        self, denoising: DenoisingPredictions, targets: PaddedTargets, count: Tensor | float
    ) -> dict[str, Tensor]:
        logits, boxes = denoising.logits, denoising.boxes
        names = [f"_dn_{i}" for i in range(len(logits))]
        if not self.aux_loss:
            logits, boxes, names = logits[-1:], boxes[-1:], names[-1:]
        matches = _denoising_matches(denoising, len(logits))
        return self._losses(logits.float(), boxes, matches, targets, count * denoising.groups, names)


def _denoising_matches(denoising: DenoisingPredictions, stages: int) -> Matches:
    """Each positive query belongs to the object it was made from, at every stage."""
    device = denoising.logits.device
    image = torch.cat([torch.full((len(index),), i) for i, index in enumerate(denoising.object_index)])
    target = torch.cat(denoising.object_index).cpu()
    stage = torch.arange(stages).repeat_interleave(len(image))
    stage, image, target = (
        torch.stack([stage, image.repeat(stages), target.repeat(stages)]).to(device, non_blocking=True).unbind()
    )
    return Matches(stage, image, torch.cat(denoising.positive_index).repeat(stages), target)


def count_objects(counts: Sequence[int], device: torch.device, across_processes: bool) -> Tensor | float:
    """Objects per process, at least 1: the normaliser of every loss (see `counted`)."""
    return counted([sum(counts)], device, across_processes)[0]


def counted(totals: Sequence[int], device: torch.device, across_processes: bool) -> list[Tensor | float]:
    """Numbers of objects per process, at least 1 each.

    In training they are averaged over all processes. In evaluation they are this process's own: there the processes may
    have different numbers of batches, and none waits for the others.
    """
    group = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not (across_processes and group):
        return [max(float(total), 1.0) for total in totals]
    means = torch.tensor(totals, dtype=torch.float32, device=device)
    torch.distributed.all_reduce(means)
    return list((means / torch.distributed.get_world_size()).clamp(min=1).unbind())
