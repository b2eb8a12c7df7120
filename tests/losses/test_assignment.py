"""Assignments of a whole step equal those of scipy, one problem at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from rtdetr_tool.losses import assignment
from rtdetr_tool.losses.assignment import assign_rows
from rtdetr_tool.losses.rows import joined

COUNTS = [3, 0, 7, 5]


def random_costs(seed: int, queries: int, groups: int, stages: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(stages, len(COUNTS), groups * queries, max(COUNTS), generator=generator)


def assign(costs: list[torch.Tensor], groups: int) -> list[torch.Tensor]:
    """The matches (stage, image, query, object) of each stack of costs [S, B, G * Q, M]."""
    stacks = [(len(cost), cost.shape[2]) for cost in costs]
    table = assign_rows(joined(costs), stacks, COUNTS, groups)
    stage, image, _, target, row = table
    cost = torch.cat([stage_cost for cost in costs for stage_cost in cost], dim=1)
    places = [(s, q) for s, (_, queries) in enumerate(expand(stacks)) for q in range(queries)]
    assert [places[r] for r in row.tolist()] == list(zip(stage.tolist(), table[2].tolist(), strict=True))
    assert cost[image, row, target].shape == stage.shape
    results, first = [], 0
    for stages, _ in stacks:
        mine = (stage >= first) & (stage < first + stages)
        results.append(table[:4, mine] - torch.tensor([first, 0, 0, 0])[:, None])
        first += stages
    return results


def expand(stacks: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(1, queries) for stages, queries in stacks for _ in range(stages)]


def one_by_one(cost: torch.Tensor, groups: int) -> list[tuple[int, int, int, int]]:
    queries, rows = cost.shape[2] // groups, []
    for stage in range(len(cost)):
        for image, count in enumerate(COUNTS):
            for group in range(groups):
                part = cost[stage, image, group * queries : (group + 1) * queries, :count].double().numpy()
                for query, target in zip(*linear_sum_assignment(part), strict=True):
                    rows.append((stage, image, int(query) + group * queries, int(target)))
    return rows


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize(("queries", "groups"), [(20, 1), (20, 13), (4, 3), (1, 2)])
def test_all_problems_of_a_step_are_solved_as_scipy_does(queries, groups, threads, monkeypatch):
    monkeypatch.setattr(assignment, "_THREADED_WORK", 0 if threads else 10**9)
    monkeypatch.setattr(assignment, "_available_cores", lambda: 4)
    costs = [random_costs(1, queries, groups, 3), random_costs(2, queries, groups, 1)]
    for cost, pairs in zip(costs, assign(costs, groups), strict=True):
        assert sorted(zip(*pairs.tolist(), strict=True)) == sorted(one_by_one(cost, groups))
        places = pairs[0] * len(COUNTS) + pairs[1]
        assert torch.equal(places, places.sort(stable=True).values)


@pytest.mark.parametrize(
    "degenerate",
    [
        torch.zeros_like,  # every assignment is optimal
        lambda cost: cost.sign(),  # many ties
        lambda cost: cost[..., :1].expand_as(cost),  # equal objects
        lambda cost: cost[:, :, :1].expand_as(cost),  # equal queries
        lambda cost: cost * 1e30,
        lambda cost: cost * 1e-30,
    ],
)
def test_degenerate_costs_are_assigned_at_the_lowest_total(degenerate):
    cost = degenerate(random_costs(3, 10, 2, 2)).contiguous()
    [pairs] = assign([cost], 2)
    stage, image, query, target = pairs
    expected = one_by_one(cost, 2)
    assert len(expected) == pairs.shape[1]
    assert len(set(zip(stage.tolist(), image.tolist(), query.tolist(), strict=True))) == len(expected)
    best = sum(cost[place].double().item() for place in expected)
    assert cost[stage, image, query, target].double().sum().item() == pytest.approx(best, rel=1e-6, abs=1e-45)


def test_a_non_finite_cost_matches_its_query_in_its_own_problem_only():
    cost = random_costs(4, 10, 2, 1)
    cost[0, 2, 13] = float("nan")  # group 1 of image 2
    [pairs] = assign([cost], 2)
    rows = set(zip(*pairs.tolist(), strict=True))
    assert any(row[1] == 2 and row[2] == 13 for row in rows)
    unaffected = [row for row in one_by_one(cost.nan_to_num(0.0), 2) if row[1] != 2 or row[2] < 10]
    assert set(unaffected) <= rows


def test_padding_columns_are_not_copied(monkeypatch):
    sizes = []
    to_host = assignment._to_host
    monkeypatch.setattr(
        assignment, "_to_host", lambda parts: sizes.append(sum(p.numel() for p in parts)) or to_host(parts)
    )
    assign([random_costs(5, 20, 2, 3)], 2)
    assert sizes == [3 * 2 * 20 * sum(COUNTS)]


def test_matches_of_no_query_are_empty():
    [pairs] = assign([torch.zeros(2, len(COUNTS), 0, max(COUNTS))], 1)
    assert pairs.shape == (4, 0) and pairs.dtype == torch.int64 and isinstance(pairs.numpy(), np.ndarray)
