"""The fused deformable sampling equals `grid_sample` and `gather`, forward and backward, in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from rtdetr_tool.ops import deformable_fused
from rtdetr_tool.ops.deformable import gather_pixels, pixel_index, sample_by_grid

pytest.importorskip("triton")

CASES = [
    {"shapes": [[4, 6]], "points": [3], "channels": 8, "heads": 2},
    {"shapes": [[4, 6], [2, 3], [1, 1]], "points": [2, 1, 3], "channels": 5, "heads": 1},  # not a power of two
]

SCRIPT = """
import json, sys, torch
from rtdetr_tool.ops import deformable_kernels as kernels
from rtdetr_tool.ops.deformable import gather_pixels, pixel_index, sample_by_grid
worst = {}
for case in json.loads(sys.argv[1]):
    shapes, points = [tuple(shape) for shape in case["shapes"]], tuple(case["points"])
    tokens, total, heads, channels = sum(h * w for h, w in shapes), sum(points), case["heads"], case["channels"]
    for discrete in (False, True):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            torch.manual_seed(0)
            value = torch.randn(2, tokens, heads, channels).to(dtype).requires_grad_()
            locations = (torch.rand(2, 3, heads, total, 2) * 1.6 - 0.3).requires_grad_()
            weights = torch.rand(2, 3, heads, total).requires_grad_()
            outer = torch.randn(2, 3, heads * channels).to(dtype)
            if discrete:
                expected = gather_pixels(value, pixel_index(shapes, locations, points), weights)
            else:
                expected = sample_by_grid(value, shapes, locations, weights, points)
            trained = [value, weights] if discrete else [value, locations, weights]
            expected = [expected, *torch.autograd.grad(expected, trained, outer)]
            sizes = tuple(side for shape in shapes for side in shape)
            arguments = value.detach(), sizes, locations.detach(), weights.detach(), points, discrete
            found = [kernels.forward(*arguments)]
            by_value, by_location, by_weight = kernels.backward(outer, *arguments)
            assert not discrete or not by_location.any()
            found += [by_value, by_weight] if discrete else [by_value, by_location, by_weight]
            differences = [float((a.float() - b.float()).abs().max()) for a, b in zip(found, expected, strict=True)]
            assert [a.dtype for a in found] == [b.dtype for b in expected]
            worst[str(dtype)] = max(worst.get(str(dtype), 0.0), *differences)
print(json.dumps(worst))
"""


def test_the_kernels_equal_the_reference_in_every_dtype():
    """In a separate process, because Triton decides on import whether to use the interpreter."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(CASES)], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    worst = json.loads(run.stdout.splitlines()[-1])
    assert worst["torch.float32"] <= 1e-5
    assert worst["torch.float16"] <= 2e-2 and worst["torch.bfloat16"] <= 1e-1  # rounding of results of up to about 8


@pytest.mark.parametrize("discrete", [False, True])
def test_the_operator_has_the_gradients_of_the_reference(discrete):
    torch.manual_seed(0)
    shapes, points = [(4, 6), (2, 3)], [2, 3]
    value = torch.randn(2, 30, 2, 8, requires_grad=True)
    locations = (torch.rand(2, 3, 2, 5, 2) * 1.4 - 0.2).requires_grad_()
    weights = torch.rand(2, 3, 2, 5, requires_grad=True)
    actual = deformable_fused.fused_sample(value, shapes, locations, weights, points, discrete)
    if discrete:
        expected = gather_pixels(value, pixel_index(shapes, locations, points), weights)
    else:
        expected = sample_by_grid(value, shapes, locations, weights, points)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    outer, inputs = torch.randn_like(actual), [value, locations, weights]
    gradients = torch.autograd.grad(actual, inputs, outer, allow_unused=True)
    for gradient, requested in zip(
        gradients, torch.autograd.grad(expected, inputs, outer, allow_unused=True), strict=True
    ):
        assert (gradient is None) == (requested is None)
        if requested is not None:
            torch.testing.assert_close(gradient, requested, atol=1e-4, rtol=1e-4)


def test_the_operator_passes_torchs_own_checks():
    value, locations, weights = torch.randn(1, 6, 2, 4), torch.rand(1, 3, 2, 2, 2), torch.rand(1, 3, 2, 2)
    arguments = (value.requires_grad_(), [2, 3], locations.requires_grad_(), weights.requires_grad_(), [2], False)
    torch.library.opcheck(deformable_fused._deformable_sample, arguments, test_utils=("test_schema", "test_faketensor"))


def test_only_its_inputs_are_kept_for_the_backward_pass():
    value, locations, weights = torch.randn(1, 600, 8, 32), torch.rand(1, 50, 8, 12, 2), torch.rand(1, 50, 8, 12)
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        deformable_fused.fused_sample(inputs[0], [(20, 30)], inputs[1], inputs[2], [12], False)
    assert sum(kept) == sum(tensor.nbytes for tensor in inputs)


def test_kernels_that_fail_or_differ_are_not_used(monkeypatch, caplog):
    device = torch.device("cpu")
    deformable_fused.is_usable.cache_clear()
    monkeypatch.setattr(deformable_fused, "fused_sample", lambda *args: sample_by_grid(*args[:5]) + 1.0)
    assert not deformable_fused.is_usable(device) and "uses grid_sample, because its kernels differ" in caplog.text

    def fail(*args):
        raise RuntimeError("no compiler")

    deformable_fused.is_usable.cache_clear()
    monkeypatch.setattr(deformable_fused, "fused_sample", fail)
    assert not deformable_fused.is_usable(device) and "no compiler" in caplog.text
    monkeypatch.undo()
    deformable_fused.is_usable.cache_clear()
    assert deformable_fused.is_usable(device)
    deformable_fused.is_usable.cache_clear()
