"""Linear layers with packed weights equal `nn.Linear` for every shape."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rtdetr_tool.formats.torch.packed_linear import PackedLinear, pack_linears
from rtdetr_tool.ops.layers import PointwiseLinear

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.mark.parametrize("shape", [(24,), (1, 24), (7, 24), (2, 300, 24), (3, 2, 5, 24), (0, 24)])
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_every_shape_gives_the_numbers_of_a_linear_layer(shape, bias):
    linear, x = nn.Linear(24, 40, bias=bias), torch.randn(shape)
    torch.testing.assert_close(PackedLinear(linear)(x), linear(x), atol=1e-5, rtol=1e-5)
    apart = torch.randn(*shape[:-1], 48)[..., ::2]  # not contiguous
    torch.testing.assert_close(PackedLinear(linear)(apart), linear(apart), atol=1e-5, rtol=1e-5)


def test_layers_that_others_read_or_that_have_another_format_stay():
    network = nn.ModuleDict(
        {"plain": nn.Linear(8, 8), "attention": nn.MultiheadAttention(8, 2), "narrow": nn.Linear(8, 8).bfloat16()}
        | {"pointwise": PointwiseLinear(8, 8)}
    )
    pack_linears(network)
    assert isinstance(network["plain"], PackedLinear) and isinstance(network["pointwise"], PackedLinear)
    assert isinstance(network["attention"].out_proj, nn.Linear)  # its weight is used by a fused function
    assert isinstance(network["narrow"], nn.Linear)


@torch.inference_mode()
def test_a_packed_rfdetr_gives_the_same_boxes(monkeypatch):
    from rtdetr_tool.api import RFDETRNano
    from tests.api.small import SIDE, SMALL_RFDETR

    network = RFDETRNano(None, 2, "cpu", **SMALL_RFDETR).network.eval()
    images = torch.rand(2, 3, SIDE, SIDE)
    expected = network(images).boxes
    pack_linears(network)
    torch.testing.assert_close(network(images).boxes, expected, atol=1e-4, rtol=1e-4)
