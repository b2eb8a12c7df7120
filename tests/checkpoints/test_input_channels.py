"""Weights of RGB models in models with other channels, and files whose channels differ from the spec."""

from __future__ import annotations

import pytest
import torch

from rtdetr_tool.checkpoints.detector_file import read_detector
from rtdetr_tool.checkpoints.input_channels import adapted_from_rgb, image_channels
from rtdetr_tool.checkpoints.loading import load_into
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.models.build import build_backbone, build_detector
from rtdetr_tool.spec import ModelSpec, spec_from_dict

SMALL = {"hidden_dim": 16, "nheads": 8, "feat_channels": [16] * 3, "dim_feedforward": 16, "dec_layers": 1}
BACKBONES = (
    "resnet_18", "resnet_18d", "convnext_tiny", "efficientvit_b0", "edgenext_x_small", "edgenext_xx_small_bn_hs",
    "fan_tiny", "timm/test_resnet",
)  # fmt: skip


def fields(backbone: str, **more) -> ModelSpec:
    return ModelSpec(backbone=backbone, **SMALL, **more)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_kind_of_backbone_has_the_channels_and_adapts_rgb_weights(backbone):
    torch.manual_seed(0)
    rgb, gray = (build_backbone(fields(backbone), num_channels=channels).eval() for channels in (3, 1))
    report = load_into(gray, rgb.state_dict(), source="rgb.pth", strict=False, what="backbone")
    assert list(report.adapted.values()) == [1] and not report.reinitialized
    assert f"Adapted {next(iter(report.adapted))} from 3 to 1 channels" in report.summary()
    image = torch.rand(1, 1, 64, 64)
    with torch.no_grad():  # a gray image is 3 equal channels, and the sum of a convolution over them 3 times the mean
        expected = rgb(image.expand(-1, 3, -1, -1) / 3)
    for a, b in zip(gray(image), expected, strict=True):
        assert torch.allclose(a, b, atol=1e-4 * b.abs().max())


@pytest.mark.parametrize("family", ["rtdetr", "rfdetr", "dfine"])
def test_the_channels_follow_from_the_tensors_of_every_family(family):
    model = spec_from_dict({"model": {"arch": family, "num_channels": 4}}).model
    detector = build_detector(model, 3)
    assert image_channels(detector.state_dict()) == detector.num_channels == 4


def test_a_bare_state_dict_opens_with_its_channels(tmp_path):
    torch.save(build_detector(fields("resnet_18", num_channels=5), 3).state_dict(), tmp_path / "a.pth")
    assert read_detector(tmp_path / "a.pth").meta["spec"]["model"]["num_channels"] == 5
    torch.save(build_detector(fields("resnet_18"), 3).state_dict(), tmp_path / "b.pth")
    assert "num_channels" not in read_detector(tmp_path / "b.pth").meta["spec"]["model"]


def test_weights_for_other_channels_do_not_fit_and_the_message_says_why():
    gray, rgb = (build_detector(fields("resnet_18", num_channels=channels), 3) for channels in (1, 3))
    with pytest.raises(CheckpointError, match=r"conv1.weight is for 3 channels in the file, but for 1 \(model.num_ch"):
        load_into(gray, rgb.state_dict(), source="rgb.pth")


def test_only_rgb_weights_are_adapted():
    backbones = [build_backbone(fields("resnet_18"), num_channels=channels) for channels in (2, 4)]
    report = load_into(backbones[1], backbones[0].state_dict(), source="two.pth", strict=False, what="backbone")
    assert report.adapted == {} and list(report.reinitialized) == ["conv1.weight"]


def test_the_magnitude_is_kept():
    weight = torch.rand(4, 3, 2, 2)
    five = adapted_from_rgb(weight, 5)
    assert torch.allclose(five[:, 3], weight[:, 0] * 0.6) and five.shape == (4, 5, 2, 2)
    assert torch.equal(adapted_from_rgb(weight, 3), weight)


def test_a_foundation_model_is_refused():
    from rtdetr_tool.errors import SpecError

    with pytest.raises(SpecError, match=r"model.frozen_fm.enabled is not supported with model.num_channels=1"):
        spec_from_dict({"model": {"num_channels": 1, "frozen_fm": {"enabled": True}}}, "evaluate")
