from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from rtdetr_tool.families.rtdetr.model.decoder import RTDETRDecoder
from rtdetr_tool.models.decoder_layer import DeformableAttention
from rtdetr_tool.models.query_selection import build_anchors
from rtdetr_tool.ops.deformable import flatten_levels


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return RTDETRDecoder([16, 16], 3, 16, num_queries=5, num_layers=2, num_heads=4, dim_feedforward=24)


def test_anchors_are_cell_centres_with_a_size_that_doubles_per_level():
    anchors, valid = build_anchors([(2, 4), (1, 2)])
    boxes = anchors.sigmoid()[0]
    assert boxes.shape == (10, 4) and valid.all()
    assert boxes[0].tolist() == pytest.approx([0.125, 0.25, 0.05, 0.05])
    assert boxes[5].tolist() == pytest.approx([0.375, 0.75, 0.05, 0.05])
    assert boxes[9].tolist() == pytest.approx([0.75, 0.5, 0.1, 0.1])


def test_anchors_at_the_very_edge_are_not_used():
    anchors, valid = build_anchors([(100, 100)])
    assert valid.view(100, 100)[0].any().item() is False  # center at 0.005
    assert valid.view(100, 100)[1:-1, 1:-1].all()
    assert torch.isinf(anchors[0, 0]).all()


def test_an_edge_anchor_that_is_selected_gives_finite_outputs_and_gradients():
    torch.manual_seed(0)
    decoder = RTDETRDecoder([8], 2, 8, num_queries=3, num_layers=1, num_heads=2, dim_feedforward=8, num_denoising=0)
    with torch.no_grad():
        decoder.enc_output[0].weight.zero_()  # all tokens are equal, so the first ones, at the edge, are selected
    result = decoder([torch.rand(1, 8, 100, 100)])
    (result.boxes.sum() + result.encoder_boxes.sum() + result.logits.sum()).backward()
    assert torch.isfinite(result.boxes).all()
    assert all(torch.isfinite(p.grad).all() for p in decoder.parameters() if p.grad is not None)


def test_queries_are_the_tokens_with_the_best_class_logit(decoder):
    maps = [torch.randn(2, 16, 4, 4), torch.randn(2, 16, 2, 2)]
    result = decoder.eval()(maps)
    memory, shapes = flatten_levels(decoder._project(maps))
    _, valid = build_anchors(shapes)
    scores = decoder.enc_score_head(decoder.enc_output(memory * valid)).amax(-1)
    content, _, logits, _ = decoder._select_queries(memory, shapes)
    assert content.shape == (2, 5, 16) and not content.requires_grad
    torch.testing.assert_close(logits.amax(-1), scores.topk(5, dim=1).values)
    assert result.logits.shape == (2, 5, 3)


def test_fewer_tokens_than_queries_give_as_many_queries_as_tokens(decoder):
    decoder.num_queries = 300
    assert decoder.eval()([torch.randn(1, 16, 4, 4), torch.randn(1, 16, 2, 2)]).logits.shape == (1, 20, 3)


def test_levels_beyond_the_encoders_are_made_from_the_coarsest(decoder):
    decoder = RTDETRDecoder([16, 16], 3, 16, num_queries=5, num_layers=1, num_heads=4, num_levels=4)
    maps = [torch.randn(1, 16, 16, 24), torch.randn(1, 16, 8, 12)]
    levels = decoder._project(maps)
    assert [tuple(level.shape[-2:]) for level in levels] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert decoder.decoder.layers[0].cross_attn.sampling_offsets.out_features == 4 * 4 * 4 * 2
    assert decoder.eval()(maps).boxes.shape == (1, 5, 4)


def test_scores_start_at_one_percent_and_boxes_at_their_anchor():
    torch.manual_seed(0)
    decoder = RTDETRDecoder([16], 3, 16, num_queries=4, num_layers=2, num_heads=4)
    for head in [decoder.enc_score_head, *decoder.dec_score_head]:
        assert head.bias.tolist() == pytest.approx([-math.log(99)] * 3)
    result = decoder([torch.randn(1, 16, 6, 6)])
    centers = build_anchors([(6, 6)])[0].sigmoid()[0]
    distance = torch.cdist(result.encoder_boxes[0], centers).amin(1)
    assert distance.max() < 1e-5
    torch.testing.assert_close(result.boxes, result.encoder_boxes, atol=1e-4, rtol=1e-4)


def test_sampling_starts_in_evenly_spread_directions_at_growing_distance():
    attention = DeformableAttention(16, num_heads=4, num_points=[3, 3])
    offsets = attention.sampling_offsets.bias.view(4, 2, 3, 2)
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    for point in range(3):
        for level in range(2):
            torch.testing.assert_close(offsets[:, level, point], expected * (point + 1), atol=1e-6, rtol=0)
    assert attention.sampling_offsets.weight.abs().max() == attention.attention_weights.weight.abs().max() == 0


def test_heads_width_and_dropout_reach_the_decoder_layers():
    decoder = RTDETRDecoder([16], 3, 16, num_layers=2, num_heads=2, dim_feedforward=40, dropout=0.3)
    for layer in decoder.decoder.layers:
        assert layer.self_attn.num_heads == layer.cross_attn.heads == 2
        assert layer.linear1.out_features == 40
        assert layer.self_attn.dropout == layer.dropout.p == 0.3


def test_a_box_passes_its_gradient_to_the_head_before_it_and_no_further(decoder):
    decoder = RTDETRDecoder([16], 3, 16, num_queries=4, num_layers=3, num_heads=4, num_denoising=0)
    nn.init.normal_(decoder.dec_bbox_head[0].layers[-1].weight)
    result = decoder([torch.randn(1, 16, 4, 4)])
    heads = [head.layers[-1].bias for head in decoder.dec_bbox_head]
    gradients = torch.autograd.grad(result.layer_boxes[2].sum(), heads)
    assert gradients[2].abs().max() > 0 and gradients[1].abs().max() > 0
    assert gradients[0].abs().max() == 0
