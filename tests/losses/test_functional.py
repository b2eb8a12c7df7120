from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from rtdetr_tool.losses.functional import matchability_aware_loss, sum_by_stage, varifocal_loss


def entry(logit: float, quality: float) -> float:
    """A positive entry by hand: cross-entropy toward its quality, weighted with it."""
    p = 1 / (1 + math.exp(-logit))
    return -quality * (quality * math.log(p) + (1 - quality) * math.log(1 - p))


def background(logit: float, alpha: float = 0.75, gamma: float = 2.0) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -alpha * p**gamma * math.log(1 - p)


def test_varifocal_loss_by_hand():
    logits = torch.tensor([[[[0.5, -1.0], [2.0, 0.0]]], [[[0.1, 0.2], [0.3, 0.4]]]])  # two stages, one image
    positive = tuple(torch.tensor([index]) for index in (0, 0, 1, 0))
    result = varifocal_loss(logits, positive, torch.tensor([0.8]))
    assert result.shape == (2,)
    assert result[0].item() == pytest.approx(entry(2.0, 0.8) + background(0.5) + background(-1.0) + background(0.0))
    assert result[1].item() == pytest.approx(sum(map(background, (0.1, 0.2, 0.3, 0.4))))


def test_alpha_and_gamma_weigh_the_background_only():
    logits = torch.tensor([[[[1.0, -0.5]]]])
    positive = tuple(torch.tensor([0]) for _ in range(4))
    result = varifocal_loss(logits, positive, torch.tensor([0.6]), alpha=0.3, gamma=1.0)
    assert result.item() == pytest.approx(entry(1.0, 0.6) + background(-0.5, 0.3, 1.0))


def test_the_weight_of_the_background_passes_no_gradient():
    logits = torch.tensor([[[[0.7]]]], requires_grad=True)
    nothing = tuple(torch.zeros(0, dtype=torch.long) for _ in range(4))
    varifocal_loss(logits, nothing, torch.zeros(0)).sum().backward()
    p = logits.detach().sigmoid()
    torch.testing.assert_close(logits.grad, 0.75 * p**2 * p)


def test_it_equals_the_definition_on_random_logits():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 5, 4, generator=generator)
    positive = tuple(torch.tensor(x) for x in ([0, 1, 2], [1, 0, 1], [4, 2, 0], [3, 0, 1]))
    quality = torch.rand(3, generator=generator)
    target, onehot = torch.zeros_like(logits), torch.zeros_like(logits)
    target[positive], onehot[positive] = quality, 1.0
    weight = 0.75 * logits.sigmoid() ** 2 * (1 - onehot) + target
    expected = (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight).sum((1, 2, 3))
    torch.testing.assert_close(varifocal_loss(logits, positive, quality), expected)


@pytest.mark.parametrize("gamma", [1.5, 2.0])
def test_matchability_aware_loss_equals_the_equation_of_the_paper(gamma):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 2, 5, 4, generator=generator)
    positive = tuple(torch.tensor(x) for x in ([0, 1, 1], [1, 0, 1], [4, 2, 0], [3, 0, 1]))
    quality = torch.tensor([0.0, 0.05, 0.9])
    p = logits.double().sigmoid()
    expected = -(p**gamma) * torch.log(1 - p)
    target, matched = quality.double() ** gamma, p[positive]
    expected[positive] = -target * torch.log(matched) - (1 - target) * torch.log(1 - matched)
    result = matchability_aware_loss(logits.double(), positive, quality, gamma)
    torch.testing.assert_close(result, expected.sum((1, 2, 3)))


def test_a_match_of_low_overlap_has_a_gradient_with_the_matchability_aware_loss_only():
    positive, quality = tuple(torch.tensor([0]) for _ in range(4)), torch.tensor([0.0])
    gradients = []
    for loss in (varifocal_loss, matchability_aware_loss):
        logits = torch.tensor([[[[0.7]]]], requires_grad=True)
        loss(logits, positive, quality).sum().backward()
        gradients.append(logits.grad.item())
    assert gradients[0] == 0 and gradients[1] == pytest.approx(torch.tensor(0.7).sigmoid().item())


def test_half_precision_logits_are_summed_in_float32():
    nothing = tuple(torch.zeros(0, dtype=torch.long) for _ in range(4))
    result = varifocal_loss(torch.zeros(1, 1, 4000, 10).bfloat16(), nothing, torch.zeros(0))
    assert result.dtype == torch.float32
    assert result.item() == pytest.approx(40000 * background(0.0), rel=1e-4)


def test_sums_go_to_their_stage():
    result = sum_by_stage(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 0, 2]), 3)
    assert result.tolist() == [2, 0, 5]
