"""Attention equals that of `nn.MultiheadAttention`, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rtdetr_tool.ops.attention import SelfAttention, additive_mask


@pytest.mark.parametrize("masked", [False, True])
def test_it_equals_multihead_attention(masked):
    torch.manual_seed(0)
    reference, ours = nn.MultiheadAttention(16, 4, batch_first=True), SelfAttention(16, 4)
    nn.init.normal_(reference.in_proj_bias)
    ours.load_state_dict(reference.state_dict())
    hidden = torch.eye(7, dtype=torch.bool) if masked else None
    results = []
    for attention in (reference, ours):
        inputs = [torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in range(2)]
        if attention is reference:
            output = reference(inputs[0], inputs[0], inputs[1], attn_mask=hidden, need_weights=False)[0]
        else:
            output = ours(*inputs, None if hidden is None else additive_mask(hidden, torch.float32))
        output.square().sum().backward()
        results.append([output, *(tensor.grad for tensor in (*inputs, *attention.parameters()))])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_dropout_acts_in_training_only():
    attention, x = SelfAttention(16, 4, dropout=0.5), torch.randn(1, 6, 16)
    assert not torch.equal(attention(x, x), attention(x, x))
    attention.eval()
    assert torch.equal(attention(x, x), attention(x, x))
