"""Products of oneDNN equal those of PyTorch, forward and backward, and are used where they are faster."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from rtdetr_tool.ops.onednn import OneDNNLinear, OneDNNPointwiseConv, use_onednn

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()), reason="requires oneDNN and MKL"
)
PRODUCT, CONVOLUTION = "mkldnn::_linear_pointwise", "aten::mkldnn_convolution"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def operators_of(run) -> set[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as recorded:
        run()
    return {row.key for row in recorded.key_averages()}


def swapped(layer: nn.Module) -> nn.Module:
    """A copy that uses oneDNN."""
    root = nn.Sequential(copy.deepcopy(layer))
    use_onednn(root)
    return root[0]


@pytest.mark.parametrize("shape", [(300, 64), (3, 100, 64)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_has_the_same_values_and_gradients(shape, bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 96, bias), torch.randn(shape, requires_grad=True)

    def run(layer, x):
        output = F.relu(layer(x), inplace=True)
        return output, *torch.autograd.grad(output.square().sum(), [x, *layer.parameters()])

    assert PRODUCT not in operators_of(lambda: run(layer, x))
    assert PRODUCT in operators_of(lambda: run(swapped(layer), x))
    actual = run(swapped(layer), x)
    for ours, exact in zip(actual, run(layer.double(), x.double()), strict=True):
        torch.testing.assert_close(ours.double(), exact.double(), atol=2e-3, rtol=1e-4)


def test_a_frozen_layer_passes_the_gradient_on():
    layer, x = swapped(nn.Linear(64, 96).requires_grad_(False)), torch.randn(300, 64, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(300, 64), atol=1e-4, rtol=1e-4)
    assert layer.weight.grad is None and layer.bias.grad is None


def test_other_products_are_those_of_pytorch():
    layer, x = swapped(nn.Linear(64, 96)), torch.randn(300, 64)
    assert PRODUCT not in operators_of(lambda: layer(x[:2]))  # small
    assert PRODUCT not in operators_of(lambda: copy.deepcopy(layer).double()(x.double()))
    with torch.no_grad():
        assert PRODUCT not in operators_of(lambda: layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert PRODUCT not in operators_of(lambda: layer(x)) and layer(x).dtype == torch.bfloat16
    assert layer.to("meta")(x.to("meta")).shape == (300, 96)


@pytest.mark.parametrize("bias", [True, False])
def test_a_pointwise_convolution_has_the_same_values_and_gradients(bias):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(16, 24, 1, bias=bias), torch.randn(2, 16, 9, 7, requires_grad=True)

    def run(layer, x):
        output = layer(x)
        return output, *torch.autograd.grad(output.square().sum(), [x, *layer.parameters()])

    assert CONVOLUTION not in operators_of(lambda: run(layer, x))  # by default, with one thread
    assert CONVOLUTION in operators_of(lambda: run(swapped(layer), x))
    actual = run(swapped(layer), x)
    for ours, exact in zip(actual, run(layer.double(), x.double()), strict=True):
        torch.testing.assert_close(ours.double(), exact.double(), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1, stride=2), nn.Conv2d(8, 8, 1, padding=1)],
    ids=["3x3", "stride", "padding"],
)
def test_other_convolutions_keep_their_meaning(layer):
    x = torch.randn(2, 8, 9, 9)
    torch.testing.assert_close(swapped(layer)(x), layer(x), atol=1e-5, rtol=1e-5)


def test_graphs_have_the_ordinary_operators():
    network = nn.Sequential(nn.Conv2d(64, 64, 1), nn.Flatten(2), nn.Linear(64, 64))
    use_onednn(network)
    assert isinstance(network[0], OneDNNPointwiseConv) and isinstance(network[2], OneDNNLinear)
    graph = str(torch.jit.trace(network, torch.randn(4, 64, 8, 8)).inlined_graph)
    assert "aten::linear" in graph and "mkldnn" not in graph and "_Product" not in graph


def test_layers_that_are_recomputed_in_the_backward_pass_have_the_same_gradients():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
    use_onednn(network)
    x = torch.randn(1, 300, 64)
    results = []
    for recompute in (False, True):
        network.zero_grad()
        output = checkpoint(network, x, use_reentrant=False) if recompute else network(x)
        output.square().sum().backward()
        results.append([parameter.grad.clone() for parameter in network.parameters()])
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, plain, atol=0, rtol=0)
