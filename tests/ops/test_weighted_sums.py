"""Sums of a table's rows are those of `embedding_bag`, and so are their gradients."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from rtdetr_tool.ops import weighted_sums as module
from rtdetr_tool.ops.weighted_sums import weighted_sums


def draw(count=7, size=5, rows=11, channels=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(rows, channels, generator=generator, dtype=dtype)
    indices = torch.randint(rows - 1, (count, size), generator=generator, dtype=torch.int32)  # no sum has the last row
    indices[:, -1] = indices[:, 0]  # some rows are twice in a sum
    return table, indices, torch.randn(count, size, generator=generator, dtype=dtype)


def reference(table, indices, weights):
    return F.embedding_bag(indices, table, mode="sum", per_sample_weights=weights)


def gradients_of(compute, table, indices, weights):
    inputs = table.clone().requires_grad_(), weights.clone().requires_grad_()
    sums = compute(inputs[0], indices, inputs[1])
    return [sums.detach(), *torch.autograd.grad(sums.square().sum(), inputs)]


@pytest.mark.parametrize("shape", [{}, {"count": 1, "size": 1}, {"count": 300, "size": 48, "channels": 32}])
def test_sums_and_gradients_are_those_of_embedding_bag(shape):
    inputs = draw(**shape)
    actual = gradients_of(weighted_sums, *inputs)
    expected = gradients_of(reference, *inputs)
    assert all(result.abs().max() > 0 for result in actual)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


def test_gradients_are_the_slopes():
    table, indices, weights = draw(dtype=torch.float64)
    inputs = table.requires_grad_(), weights.requires_grad_()
    assert torch.autograd.gradcheck(lambda table, weights: weighted_sums(table, indices, weights), inputs)


def test_only_the_gradients_that_are_needed_are_computed(monkeypatch):
    table, indices, weights = draw()
    expected = gradients_of(reference, table, indices, weights)
    for needed, unneeded, position in ((table, "_of_weights", 1), (weights, "_of_table", 2)):
        with monkeypatch.context() as patch:
            patch.setattr(module, unneeded, None)
            variable = needed.clone().requires_grad_()
            inputs = [variable if x is needed else x for x in (table, indices, weights)]
            weighted_sums(*inputs).square().sum().backward()
            torch.testing.assert_close(variable.grad, expected[position], atol=1e-5, rtol=1e-5)


def test_function_transforms_work():
    table, indices, weights = draw()
    for compute in (torch.func.grad, lambda f: lambda x: torch.func.vjp(f, x)[1](torch.tensor(1.0))[0]):
        actual, expected = (
            compute(lambda x, sums=sums: sums(x, indices, weights).square().sum())(table)
            for sums in (weighted_sums, reference)
        )
        torch.testing.assert_close(actual, expected)


def test_no_sums_have_gradients_of_zero():
    table = torch.randn(4, 3, requires_grad=True)
    weights = torch.zeros(0, 5, requires_grad=True)
    sums = weighted_sums(table, torch.zeros(0, 5, dtype=torch.int32), weights)
    assert sums.shape == (0, 3)
    sums.sum().backward()
    assert torch.equal(table.grad, torch.zeros(4, 3)) and weights.grad.shape == (0, 5)


WARNINGS = """
import warnings, torch
from rtdetr_tool.ops.weighted_sums import weighted_sums

warnings.simplefilter("error")
table, weights = torch.randn(4, 3, requires_grad=True), torch.ones(2, 2, requires_grad=True)
weighted_sums(table, torch.tensor([[0, 1], [1, 2]], dtype=torch.int32), weights).sum().backward()
"""


def test_pytorch_does_not_warn_about_sparse_tensors():
    """In a process of its own, because PyTorch warns once."""
    done = subprocess.run([sys.executable, "-c", WARNINGS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
