"""Mask losses computed by hand; tests/parity/test_rfdetr_masks.py compares them with the package."""

from __future__ import annotations

import math

import pytest
import torch

from rtdetr_tool.errors import UserError
from rtdetr_tool.losses.masks import MaskLoss, TrueMasks, factors_of, sample
from rtdetr_tool.losses.matcher import Matches
from rtdetr_tool.ops.structures import MaskFactors, Target

SIDE = 8


def target(*masks) -> Target:
    stacked = torch.stack(masks) if masks else torch.zeros(0, SIDE, SIDE, dtype=torch.bool)
    count = len(masks)
    boxes, labels = torch.zeros(count, 4), torch.zeros(count, dtype=torch.long)
    return Target(boxes, labels, 1, (SIDE, SIDE), (8.0, 8.0), masks=stacked)


def everywhere(value=True):
    return torch.full((SIDE, SIDE), value)


def pairs(*rows) -> Matches:
    """Of (stage, image, query, object); the row is of no importance here."""
    stage, image, query, target = torch.tensor(rows, dtype=torch.long).reshape(-1, 4).T
    return Matches(stage, image, query, target, query)


def test_uniform_masks_have_the_losses_of_a_single_pixel():
    """A logit of 2 everywhere on a full mask: -log sigmoid(2), and 1 - Dice of n equal points."""
    loss, truth = MaskLoss(3.0, 7.0, 4), TrueMasks.of([target(everywhere())])
    stack = factors_of(torch.full((1, 1, 4, 4), 2.0))
    p, n = 1 / (1 + math.exp(-2)), 4  # 16 pixels, 4 for each point
    dice = 1 - (2 * n * p + 1) / (n * p + n + 1)
    sums = loss.sums(stack, pairs((0, 0, 0, 0)), [1], truth)
    assert sums["loss_mask_ce"].item() == pytest.approx(3 * -math.log(p), rel=1e-5)
    assert sums["loss_mask_dice"].item() == pytest.approx(7 * dice, rel=1e-5)
    (cost,) = loss.costs([stack], truth)
    assert cost.shape == (1, 1, 1, 1) and cost.item() == pytest.approx(3 * -math.log(p) + 7 * dice, rel=1e-5)


def test_an_object_whose_mask_is_not_known_takes_no_part():
    loss, truth = MaskLoss(), TrueMasks.of([target(everywhere(False), everywhere()), target()])
    assert truth.known.tolist() == [[False, True], [False, False]]
    stack = factors_of(torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    (cost,) = loss.costs([stack], truth)
    assert (cost[0, 0, :, 0] == 0).all() and (cost[0, 0, :, 1] > 0).all() and (cost[0, 1] == 0).all()
    one = loss.sums(stack, pairs((0, 0, 2, 0)), [1, 0], truth)
    assert one["loss_mask_ce"].item() == one["loss_mask_dice"].item() == 0


def test_the_costs_of_half_a_mask_prefer_the_query_that_has_this_half():
    upper, left = everywhere(False), everywhere(False)
    upper[:4], left[:, :4] = True, True
    truth = TrueMasks.of([target(upper, left)])
    logits = torch.stack([left, upper]).float().mul(8).sub(4)[None]
    (cost,) = MaskLoss(pixels_per_point=1).costs([factors_of(logits)], truth)
    assert cost[0, 0].argmin(0).tolist() == [1, 0]


def test_each_stage_sums_its_own_pairs():
    loss, truth = MaskLoss(), TrueMasks.of([target(everywhere()), target(everywhere(), everywhere())])
    features = torch.stack([torch.full((2, 1, 4, 4), value) for value in (4.0, -4.0)])  # correct, then wrong
    stack = MaskFactors(features, torch.ones(2, 2, 5, 1), torch.zeros(1))
    rows = [(stage, image, query, query) for stage in range(2) for image, n in ((0, 1), (1, 2)) for query in range(n)]
    sums = loss.sums(stack, pairs(*rows), [1, 2], truth)["loss_mask_ce"]
    expected = [3 * 5 * math.log1p(math.exp(-4)), 3 * 5 * math.log1p(math.exp(4))]
    assert sums.tolist() == pytest.approx(expected, rel=1e-4)


def test_three_quarters_of_the_points_lie_where_the_mask_is_undecided():
    logits = torch.full((1, 1, 16, 16), 9.0)
    logits[..., :6] = (
        0.0  # more than a third of the pixels, so that three times as many candidates contain enough of them
    )
    torch.manual_seed(0)
    points = MaskLoss(pixels_per_point=4).sample_points(logits)
    assert points.shape == (1, 64, 2) and points.min() >= 0 and points.max() <= 1
    undecided = sample(logits, points)[0, 0].abs() < 1
    assert undecided[:48].float().mean() > 0.9 and undecided[48:].float().mean() < 0.7


def test_without_pairs_the_loss_is_zero_and_reaches_every_parameter():
    parts = [torch.randn(1, 1, 2, 4, 4), torch.randn(1, 1, 3, 2), torch.zeros(1)]
    stack = MaskFactors(*(part.requires_grad_() for part in parts))
    sums = MaskLoss().sums(stack, pairs(), [0], TrueMasks.of([target()]))
    (sums["loss_mask_ce"] + sums["loss_mask_dice"]).sum().backward()
    assert all(part.grad is not None and not part.grad.any() for part in parts)


def test_half_precision_is_computed_in_float():
    stack = MaskFactors(torch.randn(1, 1, 2, 4, 4).bfloat16(), torch.randn(1, 1, 3, 2).bfloat16(), torch.zeros(1))
    truth = TrueMasks.of([target(everywhere())])
    with torch.autocast("cpu", torch.bfloat16):
        sums = MaskLoss().sums(stack, pairs((0, 0, 1, 0)), [1], truth)
        (cost,) = MaskLoss().costs([stack], truth)
    assert sums["loss_mask_dice"].dtype == torch.float32 and sums["loss_mask_ce"].isfinite().all()
    assert cost.isfinite().all()


def test_targets_without_masks_are_refused():
    plain = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), 1, (SIDE, SIDE), (8.0, 8.0))
    with pytest.raises(UserError, match="has a segmentation head, but the targets have no masks"):
        TrueMasks.of([plain])
