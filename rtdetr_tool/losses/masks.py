"""Cross-entropy and Dice of predicted masks, at sampled points instead of all pixels (PointRend, Kirillov et al. 2020,
arXiv:1912.08193), for the matching and for the loss.

Points are relative (x, y), 0..1 of the network's input. A mask without a pixel stands for an object whose mask is not
known: it takes no part.

Shape legend: S stages, B batch, Q queries, M most objects of an image, D width, h, w size of predicted masks, H, W size
of true ones, n points, P matched pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from rtdetr_tool.errors import UserError
from rtdetr_tool.losses.functional import sum_by_stage
from rtdetr_tool.losses.matcher import Matches
from rtdetr_tool.ops.structures import MaskFactors, Target

_CANDIDATES = 3  # random points from which one is chosen
_UNCERTAIN = 0.75  # share of the points that are those with logits nearest to 0 among the candidates


@dataclass
class TrueMasks:
    """Masks of a batch; those beyond an image's objects are empty, and so unknown."""

    pixels: Tensor  # [B, M, H, W] bool
    known: Tensor  # [B, M] bool

    @classmethod
    def of(cls, targets: Sequence[Target]) -> TrueMasks:
        if any(target.masks is None for target in targets):
            raise UserError("the model has a segmentation head, but targets have no masks: read the data with masks")
        pixels = torch.nn.utils.rnn.pad_sequence([target.masks for target in targets], batch_first=True)
        return cls(pixels, pixels.flatten(2).any(-1))

    def at(self, image: Tensor, target: Tensor, points: Tensor) -> Tensor:
        """0 or 1 [..., n] of the nearest pixels; image, target [..., 1], points [..., n, 2]."""
        height, width = self.pixels.shape[-2:]
        x = (points[..., 0] * width).long().clamp(0, width - 1)
        y = (points[..., 1] * height).long().clamp(0, height - 1)
        return self.pixels[image, target, y, x].float()


class MaskLoss:
    """Weighted cross-entropy and Dice of masks.

    Args:
        pixels_per_point: of a predicted mask.
    """

    def __init__(self, ce_weight: float = 5.0, dice_weight: float = 5.0, pixels_per_point: int = 16) -> None:
        self.ce_weight, self.dice_weight = ce_weight, dice_weight
        self.pixels_per_point = pixels_per_point

    @torch.no_grad()
    def costs(self, stacks: Sequence[MaskFactors], truth: TrueMasks) -> list[Tensor]:
        """[S, B, Q, M] of each stack, 0 for unknown masks; all at the same points."""
        height, width = stacks[0].features.shape[-2:]
        points = torch.rand(1, max(height * width // self.pixels_per_point, 1), 2, device=truth.known.device)
        batch, most = truth.known.shape
        image = torch.arange(batch, device=points.device)[:, None, None]
        target = torch.arange(most, device=points.device)[None, :, None]
        wanted = truth.at(image, target, points[None])  # [B, M, n]
        return [
            torch.stack([self._cost(stack, stage, points, wanted, truth.known) for stage in range(len(stack.features))])
            for stack in stacks
        ]

    def _cost(self, stack: MaskFactors, stage: int, points: Tensor, wanted: Tensor, known: Tensor) -> Tensor:
        features = stack.features[stage].float()
        sampled = sample(features, points.expand(len(features), -1, -1))  # [B, D, n]
        logits = stack.queries[stage].float() @ sampled + stack.bias.float()  # [B, Q, n]
        columns = wanted.transpose(1, 2)
        entropy = (F.softplus(logits).sum(-1, keepdim=True) - logits @ columns) / logits.shape[-1]
        share = logits.sigmoid()
        overlap = _dice(share @ columns, share.sum(-1, keepdim=True), wanted.sum(-1)[:, None])
        return (self.ce_weight * entropy + self.dice_weight * overlap) * known[:, None]

    def sums(self, stack: MaskFactors, matches: Matches, pairs: Sequence[int], truth: TrueMasks) -> dict[str, Tensor]:
        """Weighted losses by name, summed over the pairs of each stage [S].

        Args:
            pairs: matches of each image, the same at every stage; the matches are in order of stage and image.
        """
        stages = len(stack.features)
        if not any(pairs):  # zero, but with a gradient for every parameter, for which DistributedDataParallel waits
            nothing = 0.0 * (stack.features.sum() + stack.queries.sum() + stack.bias.sum()).float()
            return dict.fromkeys(("loss_mask_ce", "loss_mask_dice"), nothing.expand(stages))
        logits = self._matched(stack, matches, pairs)  # [P, 1, h, w]
        points = self.choose_points(logits.detach())
        predicted = sample(logits, points)[:, 0]  # [P, n]
        image, target = matches.image[:, None], matches.target[:, None]
        wanted = truth.at(image, target, points)
        known = truth.known[matches.image, matches.target]
        entropy = F.binary_cross_entropy_with_logits(predicted, wanted, reduction="none").mean(-1)
        share = predicted.sigmoid()
        overlap = _dice((share * wanted).sum(-1), share.sum(-1), wanted.sum(-1))
        return {
            "loss_mask_ce": sum_by_stage(self.ce_weight * entropy * known, matches.stage, stages),
            "loss_mask_dice": sum_by_stage(self.dice_weight * overlap * known, matches.stage, stages),
        }

    def _matched(self, stack: MaskFactors, matches: Matches, pairs: Sequence[int]) -> Tensor:
        """Mask logits of the matched queries alone."""
        stages, batch, _, height, width = stack.features.shape
        places = product(range(stages), range(batch))
        queries = matches.query.split(list(pairs) * stages)
        products = [
            stack.queries[stage, image, query] @ stack.features[stage, image].flatten(1)
            for (stage, image), query in zip(places, queries, strict=True)
        ]
        return (torch.cat(products).float() + stack.bias.float()).reshape(-1, 1, height, width)

    @torch.no_grad()
    def choose_points(self, logits: Tensor) -> Tensor:
        """[P, n, 2] for masks [P, 1, h, w]: most where the prediction is undecided, the others anywhere."""
        pairs, _, height, width = logits.shape
        count = max(height, height * width // self.pixels_per_point)
        candidates = torch.rand(pairs, _CANDIDATES * count, 2, device=logits.device)
        undecided = int(_UNCERTAIN * count)
        nearest = sample(logits, candidates)[:, 0].abs().topk(undecided, dim=1, largest=False).indices
        chosen = candidates.gather(1, nearest[..., None].expand(-1, -1, 2))
        return torch.cat([chosen, torch.rand(pairs, count - undecided, 2, device=logits.device)], dim=1)


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values [N, C, n] of maps [N, C, h, w] at points [N, n, 2]; beyond the outer pixels' centres, theirs."""
    grid = 2 * points[:, None] - 1
    return F.grid_sample(maps, grid.to(maps.dtype), padding_mode="border", align_corners=False)[:, :, 0]


def factors_of(masks: Tensor) -> MaskFactors:
    """Mask logits [B, Q, h, w] as the factors of one stage: each query reads its own map."""
    count = masks.shape[1]
    queries = torch.eye(count, dtype=masks.dtype, device=masks.device).expand(1, len(masks), -1, -1)
    return MaskFactors(masks[None], queries, masks.new_zeros(1))


def _dice(common: Tensor, predicted: Tensor, wanted: Tensor) -> Tensor:
    """1 - Dice coefficient from sums over the points, with one point more on both sides."""
    return 1 - (2 * common + 1) / (predicted + wanted + 1)
