from __future__ import annotations

import pytest
import torch

from rtdetr_tool.models.hybrid_encoder import HybridEncoder


def maps(height=32, width=64):
    return [torch.randn(1, c, height // 2**i, width // 2**i) for i, c in enumerate((8, 16, 24))]


def test_levels_keep_their_size_and_get_the_same_width():
    out = HybridEncoder((8, 16, 24), 16, num_heads=4, dim_feedforward=8).eval()(maps())
    for level in (out.maps, out.projected):
        assert [tuple(m.shape[1:]) for m in level] == [(16, 32, 64), (16, 16, 32), (16, 8, 16)]


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_any_number_of_levels_fuses(levels):
    channels = (4, 8, 12, 16)[:levels]
    features = [torch.randn(1, c, 32 // 2**i, 32 // 2**i) for i, c in enumerate(channels)]
    encoder = HybridEncoder(channels, 8, attention_levels=(levels - 1,), num_heads=2, dim_feedforward=8)
    assert len(encoder(features).maps) == levels
    assert len(encoder.fpn_blocks) == len(encoder.pan_blocks) == levels - 1


def test_arguments_shape_the_network():
    encoder = HybridEncoder(
        (8, 16),
        16,
        attention_levels=(0, 1),
        num_heads=2,
        dim_feedforward=40,
        dropout=0.2,
        num_layers=3,
        expansion=0.5,
        depth_mult=2,
        enc_act="relu",
        act="gelu",
    )
    assert len(encoder.encoder) == 2 and len(encoder.encoder[0].layers) == 3
    layer = encoder.encoder[0].layers[0]
    assert (layer.self_attn.num_heads, layer.linear1.out_features, layer.dropout.p) == (2, 40, 0.2)
    assert isinstance(layer.activation, torch.nn.ReLU) and isinstance(encoder.lateral_convs[0].act, torch.nn.GELU)
    block = encoder.fpn_blocks[0]
    assert len(block.bottlenecks) == 6 and block.conv1.conv.out_channels == 8
    assert hasattr(block.conv3, "conv")


def test_attention_tells_positions_apart_and_the_temperature_matters():
    torch.manual_seed(0)
    encoder = HybridEncoder((8,), 16, attention_levels=(0,), num_heads=4, dim_feedforward=8).eval()
    constant = [torch.ones(1, 8, 4, 4)]
    with torch.no_grad():
        first = encoder(constant).projected[0]
        encoder.pe_temperature = 20.0
        encoder._positions.clear()
        other = encoder(constant).projected[0]
        shuffled = [torch.randn(1, 8, 4, 4)]
        moved = [shuffled[0].flip(-1)]
        a, b = encoder(shuffled).projected[0], encoder(moved).projected[0].flip(-1)
    assert first.std(dim=(2, 3)).max() < 1e-5  # equal tokens attend to equal values at all positions
    assert torch.allclose(first, other, atol=1e-5)
    assert not torch.allclose(a, b, atol=1e-4)  # the position of a token matters


def test_positions_are_made_once_per_size():
    encoder = HybridEncoder((8, 16, 24), 16, num_heads=4, dim_feedforward=8).eval()
    for size in ((32, 64), (64, 64), (32, 64)):
        encoder(maps(*size))
    assert len(encoder._positions) == 2
    assert not any("position" in name for name in encoder.state_dict())
