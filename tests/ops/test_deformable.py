from __future__ import annotations

import pytest
import torch

from rtdetr_tool.ops.deformable import deformable_sample, sample_by_bags, sample_by_grid

SHAPES = [(6, 9), (3, 5), (2, 1)]


def make_inputs(dtype=torch.float64, batch=2, queries=7, heads=3, channels=4, points=2):
    generator = torch.Generator().manual_seed(0)
    tokens = sum(height * width for height, width in SHAPES)
    value = torch.randn(batch, tokens, heads, channels, generator=generator, dtype=dtype)
    # Some locations lie outside the map, where nothing is sampled.
    locations = torch.rand(batch, queries, heads, len(SHAPES), points, 2, generator=generator, dtype=dtype) * 1.4 - 0.2
    weights = torch.rand(batch, queries, heads, len(SHAPES), points, generator=generator, dtype=dtype)
    return value, locations, weights


def by_hand(value, locations, weights):
    """The definition, one sample at a time."""
    batch, queries, heads, levels, points = weights.shape
    out = torch.zeros(batch, queries, heads, value.shape[-1], dtype=value.dtype)
    for b, q, h, level, p in torch.cartesian_prod(*map(torch.arange, (batch, queries, heads, levels, points))).tolist():
        height, width = SHAPES[level]
        start = sum(r * c for r, c in SHAPES[:level])
        x = locations[b, q, h, level, p, 0].item() * width - 0.5
        y = locations[b, q, h, level, p, 1].item() * height - 0.5
        for row in range(height):
            for column in range(width):
                share = max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
                if share:
                    out[b, q, h] += weights[b, q, h, level, p] * share * value[b, start + row * width + column, h]
    return out.flatten(2)


@pytest.mark.parametrize("sample", [sample_by_bags, sample_by_grid])
def test_samples_are_those_of_the_definition(sample):
    value, locations, weights = (x.float() for x in make_inputs())
    expected = by_hand(value.double(), locations.double(), weights.double())
    torch.testing.assert_close(sample(value, SHAPES, locations, weights).double(), expected, atol=1e-5, rtol=1e-5)


def test_both_ways_give_the_same_gradients():
    gradients = []
    for sample in (sample_by_bags, sample_by_grid):
        inputs = [x.float().requires_grad_() for x in make_inputs()]
        out = sample(inputs[0], SHAPES, *inputs[1:])
        gradients.append(torch.autograd.grad(out.square().sum(), inputs))
    for ours, theirs in zip(*gradients, strict=True):
        assert ours.abs().max() > 0
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_cpu_gathers_bags_unless_a_graph_is_traced(monkeypatch):
    from rtdetr_tool.ops import deformable

    value, locations, weights = (x.float() for x in make_inputs())
    calls = []
    for name in ("sample_by_bags", "sample_by_grid"):
        original = getattr(deformable, name)
        monkeypatch.setattr(deformable, name, lambda *a, n=name, f=original: calls.append(n) or f(*a))
    deformable_sample(value, SHAPES, locations, weights)
    assert calls == ["sample_by_bags"]
    torch.jit.trace(lambda v: deformable_sample(v, SHAPES, locations, weights), value, check_trace=False)
    assert "sample_by_grid" in calls


def test_bfloat16_values_are_sampled_at_full_precision_locations():
    value, locations, weights = (x.float() for x in make_inputs())
    exact = deformable_sample(value, SHAPES, locations, weights)
    for sample in (sample_by_bags, sample_by_grid):
        rough = sample(value.bfloat16(), SHAPES, locations, weights)
        assert rough.dtype == torch.bfloat16
        torch.testing.assert_close(rough.float(), exact, atol=0.06, rtol=0.06)


def test_on_a_large_map_half_precision_does_not_round_locations():
    """At 200 columns bfloat16 locations would be off by a column."""
    column = torch.arange(200.0).view(1, 200, 1, 1)
    locations = ((torch.arange(200.0) + 0.5) / 200).view(1, 200, 1, 1, 1, 1).expand(-1, -1, -1, -1, -1, 2).clone()
    locations[..., 1] = 0.5
    weights = torch.ones(1, 200, 1, 1, 1)
    for sample in (sample_by_bags, sample_by_grid):
        found = sample(column.bfloat16(), [(1, 200)], locations, weights).float().flatten()
        torch.testing.assert_close(found, column.flatten(), atol=0.6, rtol=0)
