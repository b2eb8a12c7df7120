"""Tests of rtdetr_tool.checkpoints.backbone_names and of reading backbones from every kind of file."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision

from rtdetr_tool.catalog import BACKBONES
from rtdetr_tool.checkpoints.backbone_names import CLASSIFIER, NAMINGS, native_backbone_names
from rtdetr_tool.checkpoints.loading import load_into
from rtdetr_tool.checkpoints.renames import to_foreign
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families.rtdetr.weights import backbone_weights
from rtdetr_tool.models.build import build_backbone
from rtdetr_tool.spec import ModelSpec

from .layouts import official_shapes, random_weights, tao_shapes

FACEBOOK, TORCHVISION, VIT_B, VIT_L, FAN = NAMINGS[:5]


def load(name: str, payload: dict):
    """A backbone with the weights of a file's content, and the report without the classifier."""
    backbone = build_backbone(ModelSpec(backbone=name)).eval()
    report = load_into(backbone, backbone_weights(payload, "a.pth"), source="a.pth", strict=False)
    report.unused = [unused for unused in report.unused if not unused.startswith(CLASSIFIER)]
    return backbone, report


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("convnext_tiny", FACEBOOK), ("convnextv2_nano", FACEBOOK), ("edgenext_x_small", FACEBOOK),
        ("efficientvit_b0", VIT_B), ("efficientvit_l0", VIT_L),
    ],
)  # fmt: skip
def test_names_of_a_family_survive_a_round_trip(name, family):
    with torch.device("meta"):
        own = build_backbone(ModelSpec(backbone=name)).state_dict()
    reference = to_foreign(own, family.table)
    assert not any(key in own for key in reference if not key.startswith(("norm", "conv_")))
    assert any(key.startswith(family.marker) for key in reference)
    extra = {"head.weight": torch.ones(1), **({"norm.weight": torch.ones(1)} if family is FACEBOOK else {})}
    assert set(native_backbone_names({**reference, **extra})) == set(own)


def test_the_class_token_of_fan_is_skipped():
    names = [
        "patch_embed.backbone.stem.0.weight",
        "cls_token",
        "cls_attn_blocks.0.attn.q.weight",
        "norm.bias",
        "cls_attn_blocks.0.mlp.fc1.weight",
        "cls_attn_blocks.1.gamma1",
        "cls_attn_blocks.1.gamma2",
        "head.bias",
    ]
    kept = native_backbone_names({name: torch.ones(1) for name in names})
    assert set(kept) == {"patch_embed.backbone.stem.0.weight", "cls_attn_blocks.1.gamma1"}


def test_names_without_a_counterpart_are_listed():
    weights = {"downsample_layers.0.0.weight": torch.ones(1), "prompt.weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"a\.pth is a backbone that cannot.*prompt\.weight"):
        backbone_weights({"model": weights}, "a.pth")


@torch.no_grad()
def test_torchvisions_convnext_has_torchvisions_feature_maps():
    torch.manual_seed(0)
    reference = torchvision.models.convnext_tiny(weights=None).eval()
    for name, parameter in reference.named_parameters():
        if name.endswith("layer_scale"):
            parameter.uniform_(0.5, 1.0)
    ours, report = load("convnext_tiny", reference.state_dict())
    assert report.missing == [f"conv_{w}.{part}" for w in (512, 1024, 2048) for part in ("weight", "bias")]
    assert not report.unused and not report.reinitialized
    images = torch.rand(1, 3, 64, 64)
    expected, actual = reference.features(images), []
    ours.stages[-1].register_forward_hook(lambda *arguments: actual.append(arguments[-1]))
    ours(images)
    torch.testing.assert_close(actual[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["resnet_18", "resnet_50"])
def test_torchvisions_resnets_load_completely(name):
    reference = getattr(torchvision.models, name.replace("_", ""))(weights=None)
    _, report = load(name, reference.state_dict())
    assert report.complete


@pytest.mark.parametrize(
    "name", ["resnet_50d", "convnextv2_nano", "efficientvit_b0", "efficientvit_l1", "edgenext_small"]
)
def test_files_of_timm_load_completely_except_for_taos_norms(name):
    reference = timm.create_model(BACKBONES[name].timm_name)
    _, report = load(name, {"state_dict": reference.state_dict()})
    assert not report.reinitialized and not [n for n in report.missing if not n.startswith("norm")]
    assert not report.unused


@pytest.mark.parametrize("depth", [18, 50])
def test_an_official_backbone_alone_loads_completely(depth):
    shapes = {n.removeprefix("backbone."): s for n, s in official_shapes(1, depth).items() if n.startswith("backbone.")}
    _, report = load(f"resnet_{depth}d", random_weights(shapes))
    assert report.complete


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("resnet_18d", lambda: {"ema": {"module": random_weights(official_shapes(2, 18, width=32, layers=1))}}),
        ("resnet_18", lambda: {"state_dict": random_weights(tao_shapes(18, width=32, layers=1))}),
    ],
)
def test_the_backbone_of_a_complete_detector_is_used(name, content):
    _, report = load(name, content())
    assert report.complete


def test_a_linear_layer_loads_into_a_1x1_convolution_and_nothing_else_is_reshaped():
    linear, conv = torch.nn.Linear(3, 4), torch.nn.Conv2d(3, 4, 1)
    load_into(conv, linear.state_dict(), source="a.pth")
    assert torch.equal(conv.weight.squeeze(), linear.weight)
    with pytest.raises(CheckpointError):
        load_into(torch.nn.Linear(4, 3), linear.state_dict(), source="a.pth")
