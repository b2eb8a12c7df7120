"""DINOv3 weights of transformers, Meta and timm under our names, with transformers' feature maps."""

from __future__ import annotations

import pytest
import timm
import torch

from rtdetr_tool.checkpoints.loading import load_into
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families.rtdetr.weights import backbone_weights
from rtdetr_tool.models.backbones.dinov3 import Dinov3ConvNext, Dinov3Vit
from rtdetr_tool.ops.pixels import normalize

SIZES = ((64, 64), (32, 96), (160, 64))
VIT, PLUS = "vit_small_patch16_dinov3", "vit_small_plus_patch16_dinov3"
SMALL_VIT = {"embed_dim": 32, "depth": 4, "num_heads": 2}
SMALL_CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}


@torch.no_grad()
def randomized(network):
    """Random numbers in every tensor, except for the biases of query, key and value."""
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        is_bias = name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias"))
        parameter.copy_(torch.zeros_like(parameter) if is_bias else parameter + 0.2 * torch.randn_like(parameter))
    return network.eval()


def transformers_vit(gated=False):
    transformers = pytest.importorskip("transformers")
    config = transformers.DINOv3ViTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=128, num_register_tokens=4,
        use_gated_mlp=gated, hidden_act="silu" if gated else "gelu",
    )  # fmt: skip
    return randomized(transformers.DINOv3ViTModel(config))


def load(backbone, tensors, source="weights.safetensors"):
    return load_into(backbone.eval().published, backbone_weights(tensors, source), source=source, strict=False)


def images(size):
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("prefix", ["model.", ""], ids=["transformers 5", "hub"])
@pytest.mark.parametrize(("name", "gated"), [(VIT, False), (PLUS, True)])
@torch.no_grad()
def test_a_vit_of_transformers_has_transformers_feature_maps(name, gated, prefix):
    reference, backbone = transformers_vit(gated), Dinov3Vit(name, (2,), **SMALL_VIT)
    tensors = {key.replace("model.layer.", f"{prefix}layer."): tensor for key, tensor in reference.state_dict().items()}
    assert load(backbone, tensors).complete
    for size in SIZES:
        outputs = reference(normalize(images(size)), output_hidden_states=True)
        for ours, hidden in zip(backbone.vit_maps(images(size)), outputs.hidden_states[1:], strict=True):
            expected = reference.norm(hidden)[:, 5:].transpose(1, 2).unflatten(2, (size[0] // 16, size[1] // 16))
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
        last = outputs.last_hidden_state[:, 5:].transpose(1, 2).flatten(1)
        torch.testing.assert_close(backbone.vit_maps(images(size))[-1].flatten(1), last, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_convnext_of_transformers_has_transformers_feature_maps():
    transformers = pytest.importorskip("transformers")
    config = transformers.DINOv3ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])
    reference = randomized(transformers.DINOv3ConvNextModel(config))
    backbone = Dinov3ConvNext("convnext_tiny", (0, 1, 2, 3), **SMALL_CONVNEXT)
    assert load(backbone, reference.state_dict()).complete
    for size in SIZES:
        expected = reference(normalize(images(size)), output_hidden_states=True).hidden_states[1:]
        for ours, hidden in zip(backbone(images(size)), expected, strict=True):
            torch.testing.assert_close(ours, hidden, atol=1e-5, rtol=1e-5)


def meta_names(weights, bias=0.0):
    """A ViT's tensors as in Meta's files, with what these have in addition."""
    renamed = {"mask_token": torch.ones(1, 32), "rope_embed.periods": torch.ones(4)}
    for name, tensor in weights.items():
        for ours, foreign in (
            ("reg_token", "storage_tokens"), ("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma"),
            ("fc1_g", "w1"), ("fc1_x", "w2"), ("mlp.fc2", "mlp.w3" if "fc1_g" in str(list(weights)) else "mlp.fc2"),
        ):  # fmt: skip
            name = name.replace(ours, foreign)
        renamed[name] = tensor
        if name.endswith("attn.qkv.weight"):
            values = torch.full((96,), bias)
            values[32:64] = torch.nan  # of the key, which is masked
            renamed |= {name.replace("weight", "bias"): values, name.replace("weight", "bias_mask"): torch.ones(96)}
    return renamed


@pytest.mark.parametrize("name", [VIT, PLUS])
def test_a_vit_of_meta_is_what_timm_converts_it_to(name):
    from timm.models.eva import checkpoint_filter_fn

    network = randomized(timm.create_model(name, num_classes=0, **SMALL_VIT))
    tensors = meta_names(network.state_dict())
    assert {"storage_tokens", "blocks.0.ls1.gamma"} <= set(tensors)
    backbone = Dinov3Vit(name, (2,), **SMALL_VIT)
    assert load(backbone, tensors).complete
    converted = checkpoint_filter_fn(tensors, network)
    ours = backbone.published.state_dict()
    assert ours.keys() == converted.keys()
    assert all(torch.equal(ours[key], tensor) for key, tensor in converted.items())


def test_meta_s_convnext_has_one_more_norm_that_no_map_depends_on():
    network = timm.create_model("convnext_tiny", num_classes=0, **SMALL_CONVNEXT)
    backbone = Dinov3ConvNext("convnext_tiny", (1, 2, 3), **SMALL_CONVNEXT)
    tensors = {}
    for name, tensor in network.state_dict().items():
        name = name.replace("stem.", "downsample_layers.0.").replace("head.norm.", "norm.")
        stage = name.split(".")[1]
        name = name.replace(f"stages.{stage}.downsample.", f"downsample_layers.{stage}.").replace("blocks.", "")
        for ours, foreign in (("conv_dw", "dwconv"), ("mlp.fc1", "pwconv1"), ("mlp.fc2", "pwconv2")):
            name = name.replace(ours, foreign)
        tensors[name] = tensor + 1
    tensors["norms.3.weight"] = tensors["norm.weight"]
    assert load(backbone, tensors).complete
    published = network.state_dict()
    assert all(torch.equal(tensor, published[key] + 1) for key, tensor in backbone.published.state_dict().items())


@pytest.mark.parametrize("form", ["transformers", "meta"])
def test_biases_in_the_attention_are_an_error_because_the_network_has_none(form):
    if form == "meta":
        tensors = meta_names(timm.create_model(VIT, num_classes=0, **SMALL_VIT).state_dict(), bias=0.5)
    else:
        tensors = transformers_vit().state_dict()
        tensors["model.layer.2.attention.v_proj.bias"][3] = 0.5
    with pytest.raises(
        CheckpointError, match=r"w\.pth .*bias is not 0 everywhere, but DINOv3 as published has no bias"
    ):
        backbone_weights(tensors, "w.pth")


def test_a_missing_projection_is_named():
    tensors = transformers_vit().state_dict()
    del tensors["model.layer.1.attention.k_proj.weight"]
    with pytest.raises(CheckpointError, match=r"missing tensors layer\.1\.attention\.k_proj\.weight"):
        backbone_weights(tensors, "w.pth")
