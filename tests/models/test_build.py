from __future__ import annotations

import dataclasses

import pytest
import torch

from rtdetr_tool.errors import UserError
from rtdetr_tool.models.build import build_backbone, build_detector
from rtdetr_tool.spec.model import ModelSpec

SMALL = ModelSpec(
    backbone="resnet_18",
    hidden_dim=16,
    nheads=2,
    feat_channels=[16, 16, 16],
    dim_feedforward=24,
    num_queries=8,
    dec_layers=2,
    dn_number=4,
)


@pytest.fixture(scope="module")
def default_names():
    detector = build_detector(ModelSpec(backbone="resnet_50"), 80)
    return {name: tuple(tensor.shape) for name, tensor in detector.state_dict().items()}


@pytest.mark.parametrize(
    "name,shape",
    [
        ("backbone.conv1.weight", (64, 3, 7, 7)),
        ("backbone.bn1.running_mean", (64,)),
        ("backbone.layer4.2.bn3.weight", (2048,)),
        ("backbone.layer3.0.downsample.0.weight", (1024, 512, 1, 1)),
        ("encoder.input_proj.2.0.weight", (256, 2048, 1, 1)),
        ("encoder.input_proj.0.1.running_var", (256,)),
        ("encoder.encoder.0.layers.0.self_attn.in_proj_weight", (768, 256)),
        ("encoder.encoder.0.layers.0.self_attn.out_proj.bias", (256,)),
        ("encoder.encoder.0.layers.0.linear1.weight", (1024, 256)),
        ("encoder.encoder.0.layers.0.norm2.weight", (256,)),
        ("encoder.lateral_convs.1.conv.weight", (256, 256, 1, 1)),
        ("encoder.downsample_convs.0.norm.weight", (256,)),
        ("encoder.fpn_blocks.0.conv1.conv.weight", (256, 512, 1, 1)),
        ("encoder.pan_blocks.1.bottlenecks.2.conv2.norm.bias", (256,)),
        ("decoder.input_proj.0.conv.weight", (256, 256, 1, 1)),
        ("decoder.input_proj.2.norm.weight", (256,)),
        ("decoder.decoder.layers.5.self_attn.in_proj_bias", (768,)),
        ("decoder.decoder.layers.5.cross_attn.sampling_offsets.weight", (192, 256)),
        ("decoder.decoder.layers.0.cross_attn.attention_weights.weight", (96, 256)),
        ("decoder.decoder.layers.0.cross_attn.value_proj.weight", (256, 256)),
        ("decoder.decoder.layers.0.norm3.bias", (256,)),
        ("decoder.denoising_class_embed.weight", (81, 256)),
        ("decoder.query_pos_head.layers.0.weight", (512, 4)),
        ("decoder.query_pos_head.layers.1.weight", (256, 512)),
        ("decoder.enc_output.1.weight", (256,)),
        ("decoder.enc_score_head.weight", (80, 256)),
        ("decoder.enc_bbox_head.layers.2.weight", (4, 256)),
        ("decoder.dec_score_head.5.bias", (80,)),
        ("decoder.dec_bbox_head.0.layers.1.weight", (256, 256)),
    ],
)
def test_names_and_shapes_are_those_of_taos_checkpoints(default_names, name, shape):
    assert default_names[name] == shape


def test_nothing_beyond_weights_is_stored(default_names):
    assert not any("anchor" in name or "position" in name or "mask" in name for name in default_names)
    assert not any("conv3" in name for name in default_names if name.startswith("encoder."))  # expansion is 1


def test_a_backbone_that_nobody_knows_is_an_error_that_names_the_others():
    with pytest.raises(UserError, match=r"'resnet50' is invalid; expected one of resnet_18, .*fan_tiny"):
        build_backbone(dataclasses.replace(SMALL, backbone="resnet50"))


def test_strides_that_are_not_the_backbones_are_an_error():
    with pytest.raises(UserError, match=r"feat_strides: \[4, 8, 16\] is invalid; expected \[8, 16, 32\]"):
        build_detector(dataclasses.replace(SMALL, feat_strides=[4, 8, 16]), 2)


@pytest.mark.parametrize(
    "indices,strides", [([3], [32]), ([2, 3], [16, 32]), ([0, 1, 2, 3], [4, 8, 16, 32]), ([0, 1, 2], [4, 8, 16])]
)
def test_one_to_four_levels_detect(indices, strides):
    spec = dataclasses.replace(
        SMALL,
        num_feature_levels=len(indices),
        return_interm_indices=indices,
        feat_strides=strides,
        feat_channels=[16] * len(indices),
        use_encoder_idx=[len(indices) - 1],
    )
    detector = build_detector(spec, 3).eval()
    with torch.no_grad():
        assert detector(torch.rand(1, 3, 128, 96)).logits.shape == (1, 8, 3)


def test_a_backbone_that_is_not_trained_stays_in_evaluation_mode():
    detector = build_detector(dataclasses.replace(SMALL, train_backbone=False), 2).train()
    assert not any(p.requires_grad for p in detector.backbone.parameters())
    assert not detector.backbone.bn1.training and detector.encoder.training


def test_the_spec_reaches_encoder_and_decoder():
    spec = dataclasses.replace(
        SMALL,
        nheads=4,
        dim_feedforward=40,
        dropout_ratio=0.2,
        enc_layers=2,
        dec_layers=3,
        eval_idx=1,
        num_queries=5,
        expansion=0.5,
        depth_mult=2,
        enc_act="relu",
        act="gelu",
        pe_temperature=50,
        dn_number=0,
        use_encoder_idx=[1, 2],
    )
    detector = build_detector(spec, 2)
    encoder, decoder = detector.encoder, detector.decoder
    for layer in (encoder.encoder[1].layers[1], decoder.decoder.layers[2]):
        assert (layer.self_attn.num_heads, layer.linear1.out_features, layer.dropout.p) == (4, 40, 0.2)
    assert decoder.decoder.layers[0].cross_attn.heads == 4
    assert (decoder.num_queries, decoder.num_denoising, decoder.decoder.eval_idx) == (5, 0, 1)
    assert not hasattr(decoder, "denoising_class_embed")
    assert encoder.attention_levels == (1, 2) and encoder.pe_temperature == 50
    assert len(encoder.fpn_blocks[0].bottlenecks) == 6 and encoder.fpn_blocks[0].conv1.conv.out_channels == 8
