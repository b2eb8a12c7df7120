"""RT-DETR's training loss: varifocal, L1 and GIoU for all decoder layers, the encoder and the denoising queries.

Shape legend: S stages, B batch, Q queries, C classes, P matched pairs, D denoising queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from rtdetr_tool.catalog import CLASS_LOSSES, LOSS_TYPES
from rtdetr_tool.losses.functional import matchability_aware_terms, sum_by_stage, varifocal_terms
from rtdetr_tool.losses.matcher import HungarianMatcher, Matches, PaddedTargets
from rtdetr_tool.losses.rows import Rows, Stack
from rtdetr_tool.ops.boxes import cxcywh_ious
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
    class_weights: Tensor | None  # [C], factors on the class loss of each class

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
        self.register_buffer("class_weights", None, persistent=False)

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
        stacks, names = self._matched_stacks(predictions)
        matched = len(stacks)
        noisy = predictions.denoising if isinstance(predictions, TrainingPredictions) else None
        denoised = 0 if noisy is None else sum(map(len, noisy.object_index)) // noisy.groups
        count, denoised_count = average_counts(
            [sum(padded.counts), denoised], predictions.logits.device, across_processes=self.training
        )
        normalizers = [count] * len(names)
        if noisy is not None:
            layers = slice(None) if self.aux_loss else slice(-1, None)
            stacks.append((noisy.logits[layers], noisy.boxes[layers]))
            names += [f"_dn_{i}" for i in range(len(noisy.logits))][layers]
            normalizers += [denoised_count * noisy.groups] * (len(names) - len(normalizers))
        rows = Rows.of(stacks)
        matching = rows.leading(matched)
        table = self.matcher.match_rows(matching, padded)
        if noisy is not None:
            known = _denoising_table(noisy, rows.stages - matching.stages, matching.stages, matching.logits.shape[1])
            table = torch.cat([table, known], dim=1)
        losses = self._losses(rows, Matches(*table), padded, normalizers, names)
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

    def _matched_stacks(self, predictions: Predictions) -> tuple[list[Stack], list[str]]:
        """The predictions that are matched with objects (decoder layers, encoder), and the suffix of each stage."""
        if not isinstance(predictions, TrainingPredictions) or not self.aux_loss:
            return [(predictions.logits[None], predictions.boxes[None])], [""]
        last = len(predictions.layer_logits) - 1
        names = [*(f"_aux_{i}" for i in range(last)), "", f"_aux_{last}"]
        encoder = (predictions.encoder_logits[None], predictions.encoder_boxes[None])
        return [(predictions.layer_logits, predictions.layer_boxes), encoder], names

    def _losses(
        self,
        rows: Rows,
        matches: Matches,
        targets: PaddedTargets,
        normalizers: Sequence[Tensor | float],
        names: Sequence[str],
        further: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The weighted losses by name, and their sum `loss`.

        Args:
            normalizers, names: of each stage.
            further: sums per stage that are weighted already, by name.
        """
        source = rows.boxes[matches.image, matches.row]  # [P, 4]
        target = targets.boxes[matches.image, matches.target]
        iou, generalized = cxcywh_ious(source, target)
        terms: dict[str, Tensor] = {}  # sums per stage
        if "boxes" in self.loss_types:
            values = torch.stack([(source - target).abs().sum(-1), 1 - generalized], dim=1)
            sums = sum_by_stage(values, matches.stage, rows.stages)
            terms["loss_bbox"], terms["loss_giou"] = sums.unbind(1)
        if self.has_class_loss:
            label = targets.labels[matches.image, matches.target]
            terms[self.class_term] = self.class_loss(rows, matches, label, iou.detach())
        weights = [self.weights[name] for name in terms] + [1.0] * len(further or {})
        terms |= further or {}
        table = torch.stack(list(terms.values()), dim=1) * _coefficients(weights, normalizers, source.device)
        by_term = zip(terms, table.unbind(1), strict=True)
        losses = {f"{name}{end}": loss for name, of in by_term for end, loss in zip(names, of.unbind(), strict=True)}
        return {**losses, "loss": table.sum()}

    def class_loss(self, rows: Rows, matches: Matches, label: Tensor, quality: Tensor) -> Tensor:
        """Class loss per stage, from the class [P] and the box IoU [P] of each pair."""
        positive = (matches.image, matches.row, label)
        return rows.sum_by_stage(self.class_terms(rows.logits, positive, quality))

    def class_terms(self, logits: Tensor, positive: tuple[Tensor, ...], quality: Tensor) -> Tensor:
        """Class loss of each logit, from the indices of matched entries and their box IoU [P]."""
        if self.class_term == "loss_mal":
            terms = matchability_aware_terms(logits, positive, quality, self.gamma)
        else:
            terms = varifocal_terms(logits, positive, quality, self.alpha, self.gamma)
        return terms if self.class_weights is None else terms * self.class_weights


def _coefficients(weights: Sequence[float], normalizers: Sequence[Tensor | float], device: torch.device) -> Tensor:
    """The factor of each stage and term."""
    if any(isinstance(normalizer, Tensor) for normalizer in normalizers):
        numbers = torch.stack([torch.as_tensor(normalizer, device=device) for normalizer in normalizers])
        return torch.tensor(weights).to(device, non_blocking=True) / numbers[:, None]
    factors = [[weight / normalizer for weight in weights] for normalizer in normalizers]
    return torch.tensor(factors).to(device, non_blocking=True)


def denoising_matches(denoising: DenoisingPredictions, stages: int) -> Matches:
    """Match each positive query with the object it was created from, at every stage."""
    return Matches(*_denoising_table(denoising, stages, 0, 0))


def _denoising_table(denoising: DenoisingPredictions, stages: int, first_stage: int, first_row: int) -> Tensor:
    """The fields of `Matches` [5, P] for the stages after those that are matched."""
    image = torch.cat([torch.full((len(index),), i) for i, index in enumerate(denoising.object_index)])
    target, query = torch.cat(denoising.object_index).cpu(), torch.cat(denoising.positive_index).cpu()
    stage = torch.arange(stages).repeat_interleave(len(image))
    row = first_row + stage * denoising.logits.shape[2] + query.repeat(stages)
    repeated = (values.repeat(stages) for values in (image, query, target))
    table = torch.stack([first_stage + stage, *repeated, row])
    return table.to(denoising.logits.device, non_blocking=True)


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
