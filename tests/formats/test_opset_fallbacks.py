"""Elementary operators give the same results as the original ones."""

import pytest
import torch
import torch.nn.functional as F

from rtdetr_tool.formats.onnx import opset_fallbacks
from rtdetr_tool.formats.onnx.opset_fallbacks import fallback_operators


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (8, 3)])
def test_grid_sample_equals_torchs_inside_and_outside_the_map(size):
    torch.manual_seed(0)
    image, grid = torch.randn(3, 4, *size), torch.rand(3, 6, 5, 2) * 3 - 1.5
    expected = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    torch.testing.assert_close(opset_fallbacks.grid_sample(image, grid), expected, atol=1e-6, rtol=1e-5)


def test_attention_equals_torchs_with_and_without_masks():
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, 3)
    allowed = torch.rand(5, 7) > 0.3
    for mask in (None, allowed, torch.randn(2, 4, 5, 7)):
        expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        torch.testing.assert_close(opset_fallbacks.attention(query, key, value, attn_mask=mask), expected)
    scaled = F.scaled_dot_product_attention(query, key, value, scale=0.1)
    torch.testing.assert_close(opset_fallbacks.attention(query, key, value, scale=0.1), scaled)


def test_what_is_not_written_is_refused():
    image, grid = torch.rand(1, 1, 2, 2), torch.rand(1, 1, 1, 2)
    with pytest.raises(NotImplementedError, match="border"):
        opset_fallbacks.grid_sample(image, grid, padding_mode="border")
    with pytest.raises(NotImplementedError, match="align_corners=True"):
        opset_fallbacks.grid_sample(image, grid, align_corners=True)
    with pytest.raises(NotImplementedError, match="causal"):
        opset_fallbacks.attention(image, image, image, is_causal=True)


def test_torchs_own_functions_come_back_also_after_an_error():
    before = F.grid_sample, F.scaled_dot_product_attention, torch.Tensor.unflatten
    with pytest.raises(RuntimeError), fallback_operators():
        assert F.grid_sample is opset_fallbacks.grid_sample
        assert torch.arange(6).unflatten(-1, (2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
        raise RuntimeError
    assert (F.grid_sample, F.scaled_dot_product_attention, torch.Tensor.unflatten) == before


def test_multi_head_attention_is_traced_without_the_fused_operator():
    attention = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.rand(2, 3, 8)
    expected = attention(x, x, x, need_weights=False)[0]
    with fallback_operators():
        actual = attention(x, x, x, need_weights=False)[0]
    torch.testing.assert_close(actual, expected)
