from __future__ import annotations

import pytest
import torch

from rtdetr_tool.ops.deformable import (
    bags_of_pixels,
    deformable_sample,
    gather_pixels,
    pixel_index,
    sample_by_bags,
    sample_by_grid,
    sample_maps,
)

SHAPES = [(6, 9), (3, 5), (2, 1)]
POINTS = [2, 1, 3]


def make_inputs(dtype=torch.float64, batch=2, queries=7, heads=3, channels=4):
    generator = torch.Generator().manual_seed(0)
    tokens = sum(height * width for height, width in SHAPES)
    value = torch.randn(batch, tokens, heads, channels, generator=generator, dtype=dtype)
    # Some locations are outside of the map, where nothing is sampled.
    locations = torch.rand(batch, queries, heads, sum(POINTS), 2, generator=generator, dtype=dtype) * 1.4 - 0.2
    weights = torch.rand(batch, queries, heads, sum(POINTS), generator=generator, dtype=dtype)
    return value, locations, weights


def by_hand(value, locations, weights, share_of_pixel):
    """The definition, one sample at a time; `share_of_pixel(x, y, row, column, height, width)`, x and y relative."""
    batch, queries, heads, points = weights.shape
    levels = [level for level, count in enumerate(POINTS) for _ in range(count)]
    out = torch.zeros(batch, queries, heads, value.shape[-1], dtype=value.dtype)
    for b, q, h, p in torch.cartesian_prod(*map(torch.arange, (batch, queries, heads, points))).tolist():
        height, width = SHAPES[levels[p]]
        start = sum(r * c for r, c in SHAPES[: levels[p]])
        x, y = locations[b, q, h, p].tolist()
        for row in range(height):
            for column in range(width):
                share = share_of_pixel(x, y, row, column, height, width)
                if share:
                    out[b, q, h] += weights[b, q, h, p] * share * value[b, start + row * width + column, h]
    return out.flatten(2)


def bilinear(x, y, row, column, height, width):
    return max(0.0, 1 - abs(x * width - 0.5 - column)) * max(0.0, 1 - abs(y * height - 0.5 - row))


def whole_pixel(x, y, row, column, height, width):
    nearest_column = min(max(int(x * width + 0.5), 0), width - 1)
    nearest_row = min(max(int(y * height + 0.5), 0), height - 1)
    return float((row, column) == (nearest_row, nearest_column))


@pytest.mark.parametrize("sample", [sample_by_bags, sample_by_grid])
def test_samples_are_those_of_the_definition(sample):
    value, locations, weights = (x.float() for x in make_inputs())
    expected = by_hand(value.double(), locations.double(), weights.double(), bilinear)
    actual = sample(value, SHAPES, locations, weights, POINTS)
    torch.testing.assert_close(actual.double(), expected, atol=1e-5, rtol=1e-5)


def test_maps_are_sampled_as_their_tokens_are():
    value, locations, weights = (x.float() for x in make_inputs())
    levels = value.split([height * width for height, width in SHAPES], dim=1)
    maps = [level.permute(0, 2, 3, 1).reshape(6, 4, *shape) for level, shape in zip(levels, SHAPES, strict=True)]
    expected = sample_by_bags(value, SHAPES, locations, weights, POINTS)
    torch.testing.assert_close(sample_maps(maps, locations, weights, POINTS), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sample", [bags_of_pixels, gather_pixels])
def test_discrete_samples_are_whole_pixels_and_stay_on_the_map(sample):
    value, locations, weights = (x.float() for x in make_inputs())
    expected = by_hand(value.double(), locations.double(), weights.double(), whole_pixel)
    actual = sample(value, pixel_index(SHAPES, locations, POINTS), weights)
    torch.testing.assert_close(actual.double(), expected, atol=1e-5, rtol=1e-5)


def test_both_ways_give_the_same_gradients():
    gradients = []
    for sample in (sample_by_bags, sample_by_grid):
        inputs = [x.float().requires_grad_() for x in make_inputs()]
        out = sample(inputs[0], SHAPES, *inputs[1:], POINTS)
        gradients.append(torch.autograd.grad(out.square().sum(), inputs))
    for ours, reference in zip(*gradients, strict=True):
        assert ours.abs().max() > 0
        torch.testing.assert_close(ours, reference, atol=1e-4, rtol=1e-4)


def test_both_ways_of_discrete_sampling_give_the_same_gradients_and_none_to_locations():
    gradients = []
    for sample in (bags_of_pixels, gather_pixels):
        value, locations, weights = (x.float().requires_grad_() for x in make_inputs())
        index = pixel_index(SHAPES, locations, POINTS)
        assert not index.requires_grad
        out = sample(value, index, weights)
        gradients.append(torch.autograd.grad(out.square().sum(), (value, weights)))
    for ours, reference in zip(*gradients, strict=True):
        assert ours.abs().max() > 0
        torch.testing.assert_close(ours, reference, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("discrete", "on_cpu", "in_graph"),
    [(False, "sample_by_bags", "sample_by_grid"), (True, "bags_of_pixels", "gather_pixels")],
)
def test_the_cpu_gathers_bags_unless_a_graph_is_traced(monkeypatch, discrete, on_cpu, in_graph):
    from rtdetr_tool.ops import deformable

    value, locations, weights = (x.float() for x in make_inputs())
    calls = []
    for name in (on_cpu, in_graph):
        original = getattr(deformable, name)
        monkeypatch.setattr(deformable, name, lambda *a, n=name, f=original: calls.append(n) or f(*a))

    def sample(value):
        return deformable_sample(value, SHAPES, locations, weights, POINTS, discrete)

    sample(value)
    assert calls == [on_cpu]
    torch.jit.trace(sample, value, check_trace=False)
    assert in_graph in calls


def test_bfloat16_values_are_sampled_at_full_precision_locations():
    value, locations, weights = (x.float() for x in make_inputs())
    exact = deformable_sample(value, SHAPES, locations, weights, POINTS)
    for sample in (sample_by_bags, sample_by_grid):
        rough = sample(value.bfloat16(), SHAPES, locations, weights, POINTS)
        assert rough.dtype == torch.bfloat16
        torch.testing.assert_close(rough.float(), exact, atol=0.06, rtol=0.06)


def test_on_a_large_map_half_precision_does_not_round_locations():
    """With 200 columns, bfloat16 locations would be off by a column."""
    column = torch.arange(200.0).view(1, 200, 1, 1)
    locations = ((torch.arange(200.0) + 0.5) / 200).view(1, 200, 1, 1, 1).expand(-1, -1, -1, -1, 2).clone()
    locations[..., 1] = 0.5
    weights = torch.ones(1, 200, 1, 1)
    for sample in (sample_by_bags, sample_by_grid):
        result = sample(column.bfloat16(), [(1, 200)], locations, weights, [1]).float().flatten()
        torch.testing.assert_close(result, column.flatten(), atol=0.6, rtol=0)


@pytest.mark.parametrize("discrete", [False, True])
def test_precise_sampling_takes_bags_on_every_device(monkeypatch, discrete):
    from rtdetr_tool.ops import deformable, deformable_fused

    class OnCuda(torch.Tensor):
        device = torch.device("cuda:0")

    called = []
    monkeypatch.setattr(deformable_fused, "is_usable", lambda device: True)
    monkeypatch.setattr(deformable_fused, "fused_sample", lambda *inputs: called.append("fused"))
    for name in ("sample_by_bags", "bags_of_pixels"):
        monkeypatch.setattr(deformable, name, lambda *inputs: called.append("bags"))
    value, locations, weights = make_inputs()
    for precise in (False, True):
        deformable_sample(value.as_subclass(OnCuda), SHAPES, locations, weights, POINTS, discrete, precise)
    assert called == ["fused", "bags"]
