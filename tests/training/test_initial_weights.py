"""Names of weights in timm, and loading a file with timm's names. (Downloading is left to timm.)"""

from __future__ import annotations

import pytest
import timm
import torch

from rtdetr_tool.checkpoints.io import save_checkpoint
from rtdetr_tool.checkpoints.timm_weights import timm_weights
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.spec import ExperimentSpec, ModelSpec
from rtdetr_tool.training.initial_weights import load_initial_weights


@pytest.mark.parametrize(
    ("source", "backbone", "name"),
    [
        ("timm", "resnet_18", "resnet18.a1_in1k"),
        ("timm/a3_in1k", "resnet_18", "resnet18.a3_in1k"),
        ("timm/resnet18.a3_in1k", "resnet_18", "resnet18.a3_in1k"),
        ("timm", "convnextv2_nano", "convnextv2_nano.fcmae_ft_in22k_in1k"),
        ("timm", "dinov3_convnext_tiny", "convnext_tiny.dinov3_lvd1689m"),  # not timm's default weights
        ("timm", "dinov3_vit_small", "vit_small_patch16_dinov3.lvd1689m"),
        ("timm", "timm/regnety_004", "regnety_004"),
        ("timm", "timm/regnety_004.tv2_in1k", "regnety_004.tv2_in1k"),
        ("timm/pycls_in1k", "timm/regnety_004.tv2_in1k", "regnety_004.pycls_in1k"),
    ],
)
def test_weights_have_their_names_in_timm(source, backbone, name):
    assert timm_weights(source, backbone) == name


@pytest.mark.parametrize(
    ("backbone", "advice"),
    [
        ("fan_tiny", "NVlabs/FAN fan_hybrid_tiny"),
        ("edgenext_small_bn_hs", "mmaaz60/EdgeNeXt edgenext_small_bn_hs"),
        ("efficientvit_l0", "none are published"),
    ],
)
def test_a_backbone_without_timm_weights_is_refused_with_advice(backbone, advice):
    with pytest.raises(CheckpointError, match=f"timm has no weights of {backbone}.*{advice}"):
        timm_weights("timm", backbone)


@pytest.mark.parametrize(
    ("backbone", "network", "missing"),
    [
        ("convnextv2_nano", "convnextv2_nano", ()),
        ("convnext_tiny", "convnext_tiny", ("conv_",)),  # TAO's convolutions after the stages
        ("efficientvit_b0", "efficientvit_b0", ("norm",)),  # TAO's norms of the feature maps
        ("edgenext_x_small", "edgenext_x_small", ()),
        ("timm/regnety_002", "regnety_002", ()),
        ("timm/mobilenetv3_small_050", "mobilenetv3_small_050", ()),  # not split into stages
        ("timm/pvt_v2_b0", "pvt_v2_b0", ()),
    ],
)
def test_a_file_with_timm_names_is_loaded_into_the_backbone(tmp_path, backbone, network, missing):
    torch.manual_seed(0)
    published = timm.create_model(network).state_dict()
    path = tmp_path / "published.pth"
    save_checkpoint(published, path)
    spec = ExperimentSpec(model=ModelSpec(backbone=backbone, pretrained_backbone_path=str(path), dec_layers=1))
    detector = build_detector(spec.model, 2)
    report = load_initial_weights(detector, spec, ())
    assert not report.reinitialized and all(name.startswith(missing or "?") for name in report.missing)
    assert bool(report.missing) == bool(missing)
    state = getattr(detector.backbone, "published", detector.backbone).state_dict()
    assert all(torch.equal(state[name], published[name]) for name in report.loaded) and len(report.loaded) > 20
