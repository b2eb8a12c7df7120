"""Mask cross-entropy and Dice at sampled points, for matching and loss.

PointRend (Kirillov et al. 2020, arXiv:1912.08193). Points are relative (x, y), 0..1 of the network's input. An empty
target mask means that the mask is unknown; it is ignored.

Shape legend: S stages, B batch, Q queries, M maximum objects per image, D width, h, w size of predicted masks, H, W
size of target masks, n points, P matched pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rtdetr_tool.errors import UserError
from rtdetr_tool.losses.functional import sum_by_stage
from rtdetr_tool.losses.matcher import Matches
from rtdetr_tool.ops.structures import MaskFactors, Predictions, Target, TrainingPredictions

_CANDIDATES = 3  # random candidates per sampled point
_UNCERTAIN = 0.75  # share of the points taken where the logits of candidates are nearest to 0


@dataclass
class TrueMasks:
    """Target masks of a batch; padding rows are empty, and therefore unknown."""

    pixels: Tensor  # [B, M, H, W] bool
    known: Tensor  # [B, M] bool

    @classmethod
    def of(cls, targets: Sequence[Target]) -> TrueMasks:
        if any(target.masks is None for target in targets):
            raise UserError(
                'the model has a segmentation head, but the targets have no masks; load the dataset with kind="masks"'
            )
        pixels = pad_sequence([target.masks for target in targets if target.masks is not None], batch_first=True)
        return cls(pixels, pixels.flatten(2).any(-1))

    def at(self, image: Tensor, target: Tensor, points: Tensor) -> Tensor:
        """Values 0 or 1 [..., n] at the nearest pixels; image, target [..., 1], points [..., n, 2]."""
        height, width = self.pixels.shape[-2:]
        x = (points[..., 0] * width).long().clamp(0, width - 1)
        y = (points[..., 1] * height).long().clamp(0, height - 1)
        return self.pixels[image, target, y, x].float()


class MaskLoss:
    """Weighted cross-entropy and Dice loss of masks.

    Args:
        pixels_per_point: pixels of a predicted mask per sampled point.
    """

    terms = ("loss_mask_ce", "loss_mask_dice")

    def __init__(self, ce_weight: float = 5.0, dice_weight: float = 5.0, pixels_per_point: int = 16) -> None:
        self.ce_weight, self.dice_weight = ce_weight, dice_weight
        self.pixels_per_point = pixels_per_point

    def stacks(self, predictions: Predictions, aux_loss: bool) -> list[MaskFactors]:
        """Masks of the stages that are supervised: the decoder layers, then the encoder."""
        if not isinstance(predictions, TrainingPredictions):
            assert predictions.masks is not None  # a detector trained with a mask loss predicts masks
            return [factors_of(predictions.masks)]
        layers, encoder = predictions.layer_masks, predictions.encoder_masks
        assert layers is not None and encoder is not None
        if not aux_loss:
            return [MaskFactors(layers.features[-1:], layers.queries[-1:], layers.bias)]
        return [layers, encoder]

    def truth(self, targets: Sequence[Target]) -> TrueMasks:
        """The targets of a batch; UserError if they have no masks."""
        return TrueMasks.of(targets)

    @torch.no_grad()
    def costs(self, stacks: Sequence[MaskFactors], truth: TrueMasks) -> list[Tensor]:
        """Matching costs [S, B, Q, M] of each stack, at common points; 0 for unknown masks."""
        height, width = stacks[0].features.shape[-2:]
        points = torch.rand(1, max(height * width // self.pixels_per_point, 1), 2, device=truth.known.device)
        batch, most = truth.known.shape
        image = torch.arange(batch, device=points.device)[:, None, None]
        target = torch.arange(most, device=points.device)[None, :, None]
        labels = truth.at(image, target, points[None])  # [B, M, n]
        return [
            torch.stack([self._cost(stack, stage, points, labels, truth.known) for stage in range(len(stack.features))])
            for stack in stacks
        ]

    def _cost(self, stack: MaskFactors, stage: int, points: Tensor, labels: Tensor, known: Tensor) -> Tensor:
        features = stack.features[stage].float()
        sampled = sample(features, points.expand(len(features), -1, -1))  # [B, D, n]
        logits = stack.queries[stage].float() @ sampled + stack.bias.float()  # [B, Q, n]
        columns = labels.transpose(1, 2)
        entropy = (F.softplus(logits).sum(-1, keepdim=True) - logits @ columns) / logits.shape[-1]
        share = logits.sigmoid()
        overlap = _dice(share @ columns, share.sum(-1, keepdim=True), labels.sum(-1)[:, None])
        return (self.ce_weight * entropy + self.dice_weight * overlap) * known[:, None]

    def sums(self, stack: MaskFactors, matches: Matches, pairs: Sequence[int], truth: TrueMasks) -> dict[str, Tensor]:
        """Weighted losses by name, summed over the pairs of each stage, [S].

        Args:
            pairs: number of matches per image, equal for all stages; matches are ordered by stage and image.
        """
        stages = len(stack.features)
        if not any(pairs):  # zero, but with a gradient for every parameter (DistributedDataParallel needs it)
            nothing = 0.0 * (stack.features.sum() + stack.queries.sum() + stack.bias.sum()).float()
            return dict.fromkeys(self.terms, nothing.expand(stages))
        logits = self._matched(stack, matches, pairs)  # [P, 1, h, w]
        points = self.sample_points(logits.detach())
        predicted = sample(logits, points)[:, 0]  # [P, n]
        image, target = matches.image[:, None], matches.target[:, None]
        labels = truth.at(image, target, points)
        known = truth.known[matches.image, matches.target]
        entropy = F.binary_cross_entropy_with_logits(predicted, labels, reduction="none").mean(-1)
        share = predicted.sigmoid()
        overlap = _dice((share * labels).sum(-1), share.sum(-1), labels.sum(-1))
        return {
            "loss_mask_ce": sum_by_stage(self.ce_weight * entropy * known, matches.stage, stages),
            "loss_mask_dice": sum_by_stage(self.dice_weight * overlap * known, matches.stage, stages),
        }

    def _matched(self, stack: MaskFactors, matches: Matches, pairs: Sequence[int]) -> Tensor:
        """Mask logits of the matched queries."""
        stages, batch, _, height, width = stack.features.shape
        positions = product(range(stages), range(batch))
        queries = matches.query.split(list(pairs) * stages)
        products = [
            stack.queries[stage, image, query] @ stack.features[stage, image].flatten(1)
            for (stage, image), query in zip(positions, queries, strict=True)
        ]
        return (torch.cat(products).float() + stack.bias.float()).reshape(-1, 1, height, width)

    @torch.no_grad()
    def sample_points(self, logits: Tensor) -> Tensor:
        """Points [P, n, 2] for masks [P, 1, h, w]: most where the prediction is uncertain, the others uniform."""
        pairs, _, height, width = logits.shape
        count = max(height, height * width // self.pixels_per_point)
        candidates = torch.rand(pairs, _CANDIDATES * count, 2, device=logits.device)
        uncertain = int(_UNCERTAIN * count)
        nearest = sample(logits, candidates)[:, 0].abs().topk(uncertain, dim=1, largest=False).indices
        selected = candidates.gather(1, nearest[..., None].expand(-1, -1, 2))
        return torch.cat([selected, torch.rand(pairs, count - uncertain, 2, device=logits.device)], dim=1)


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values [N, C, n] of maps [N, C, h, w] at points [N, n, 2], with border padding."""
    grid = 2 * points[:, None] - 1
    return F.grid_sample(maps, grid.to(maps.dtype), padding_mode="border", align_corners=False)[:, :, 0]


def factors_of(masks: Tensor) -> MaskFactors:
    """Mask logits [B, Q, h, w] in factored form, as one stage: each query selects its own map."""
    count = masks.shape[1]
    queries = torch.eye(count, dtype=masks.dtype, device=masks.device).expand(1, len(masks), -1, -1)
    return MaskFactors(masks[None], queries, masks.new_zeros(1))


def _dice(common: Tensor, predicted: Tensor, target: Tensor) -> Tensor:
    """1 - Dice coefficient from sums over the points, smoothed by 1."""
    return 1 - (2 * common + 1) / (predicted + target + 1)
