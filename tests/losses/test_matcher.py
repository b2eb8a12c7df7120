from __future__ import annotations

import itertools
import math

import pytest
import torch

from rtdetr_tool.losses import assignment
from rtdetr_tool.losses.matcher import HungarianMatcher, PaddedTargets
from rtdetr_tool.ops.structures import Target


def target(boxes, labels) -> Target:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Target(boxes, torch.tensor(labels, dtype=torch.long), 0, (64, 64), (64.0, 64.0))


def test_the_cost_by_hand():
    padded = PaddedTargets.of([target([[0.5, 0.5, 0.2, 0.2]], [1])])
    logits = torch.tensor([[[[0.0, 2.0]]]])
    boxes = torch.tensor([[[[0.6, 0.5, 0.2, 0.2]]]])
    p = 1 / (1 + math.exp(-2.0))
    focal = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8) - 0.75 * p**2 * -math.log(1 - p + 1e-8)
    iou = 0.02 / 0.06  # hull and union agree for boxes side by side
    for weights in ((2.0, 5.0, 2.0), (1.0, 0.0, 0.0), (0.0, 3.0, 0.0), (0.0, 0.0, 7.0)):
        expected = weights[0] * focal + weights[1] * 0.1 - weights[2] * iou
        actual = HungarianMatcher(*weights).cost(logits, boxes, padded)
        assert actual.shape == (1, 1, 1, 1)
        assert actual.item() == pytest.approx(expected, abs=1e-5)


def test_each_object_gets_the_query_of_a_least_total_cost():
    generator = torch.Generator().manual_seed(1)
    targets = [target(torch.rand(3, 4, generator=generator).tolist(), [0, 2, 1]), target([], [])]
    targets.append(target(torch.rand(2, 4, generator=generator).tolist(), [1, 1]))
    logits, boxes = torch.randn(2, 3, 6, 3, generator=generator), torch.rand(2, 3, 6, 4, generator=generator)
    matcher, padded = HungarianMatcher(), PaddedTargets.of(targets)
    cost = matcher.cost(logits, boxes, padded)
    matches = matcher(logits, boxes, padded)
    assert len(matches.stage) == 2 * (3 + 0 + 2)
    for stage, image in itertools.product(range(2), (0, 2)):
        mine = (matches.stage == stage) & (matches.image == image)
        query, expected = matches.query[mine], matches.target[mine]
        count = padded.counts[image]
        assert sorted(expected.tolist()) == list(range(count)) and len(set(query.tolist())) == count
        best = min(
            sum(cost[stage, image, q, t].item() for t, q in enumerate(choice))
            for choice in itertools.permutations(range(6), count)
        )
        assert cost[stage, image, query, expected].sum().item() == pytest.approx(best, abs=1e-5)


def test_more_objects_than_queries_leave_objects_unmatched():
    padded = PaddedTargets.of([target([[0.1 * i, 0.5, 0.1, 0.1] for i in range(1, 6)], [0] * 5)])
    matches = HungarianMatcher()(torch.zeros(1, 1, 2, 1), torch.rand(1, 1, 2, 4), padded)
    assert sorted(matches.query.tolist()) == [0, 1] and len(set(matches.target.tolist())) == 2


def test_a_batch_without_objects_matches_nothing():
    padded = PaddedTargets.of([target([], []), target([], [])])
    matches = HungarianMatcher()(torch.zeros(3, 2, 4, 2), torch.rand(3, 2, 4, 4), padded)
    assert len(matches.stage) == len(matches.query) == 0 and matches.image.dtype == torch.long


def test_all_stages_and_images_reach_the_host_in_one_copy(monkeypatch):
    padded = PaddedTargets.of([target([[0.5, 0.5, 0.2, 0.2]], [0])] * 4)
    copies = []
    to_host = assignment._to_host
    monkeypatch.setattr(assignment, "_to_host", lambda parts: copies.append(len(parts)) or to_host(parts))
    monkeypatch.setattr(torch.Tensor, "item", lambda self: pytest.fail("a step must not wait for a single value"))
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: pytest.fail("a step must not wait for a list"))
    HungarianMatcher()(torch.zeros(7, 4, 10, 2), torch.rand(7, 4, 10, 4), padded)
    assert copies == [4]  # images, each with the costs of all stages


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_are_matched_so_that_the_loss_is_not_finite(poison):
    padded = PaddedTargets.of([target([[0.5, 0.5, 0.2, 0.2]], [0])] * 2)
    boxes = torch.full((3, 2, 4, 4), 0.5)
    boxes[1, 1, 2, 0] = poison
    matches = HungarianMatcher()(torch.zeros(3, 2, 4, 1), boxes, padded)
    places = list(zip(matches.stage.tolist(), matches.image.tolist(), strict=True))
    assert len(set(places)) == 6 and matches.query[places.index((1, 1))] == 2


def test_half_precision_logits_give_a_float32_cost():
    padded = PaddedTargets.of([target([[0.5, 0.5, 0.2, 0.2]], [0])])
    cost = HungarianMatcher().cost(torch.zeros(1, 1, 2, 1).bfloat16(), torch.rand(1, 1, 2, 4), padded)
    assert cost.dtype == torch.float32
