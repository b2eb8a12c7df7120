"""`model.pretrained_backbone_path` of an RF-DETR: DINOv2 from timm, transformers or Meta, or an RF-DETR."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import timm
import torch

from rtdetr_tool.checkpoints.io import save_checkpoint
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families.rfdetr.names import to_rfdetr
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.spec import DatasetSpec, ExperimentSpec, ModelSpec
from rtdetr_tool.training.initial_weights import load_initial_weights

SMALL = RfdetrSpec(patch_size=14, num_windows=1, resolution=56, num_queries=4, group_detr=2, dim_feedforward=16)


def spec_for(path, rfdetr=SMALL):
    model = ModelSpec(arch="rfdetr", pretrained_backbone_path=str(path), rfdetr=rfdetr)
    return ExperimentSpec(model=model, dataset=DatasetSpec(num_classes=3))


def loaded(spec):
    detector = build_detector(spec.model, 3)
    return detector.backbone.eval(), load_initial_weights(detector, spec, ())


def published(name="vit_small_patch14_dinov2"):
    """timm's network with random numbers in every tensor."""
    torch.manual_seed(0)
    network = timm.create_model(name, img_size=56, num_classes=0).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return network


def check_maps(backbone, network):
    images = torch.rand(1, 3, 56, 56)
    with torch.no_grad():
        expected = network.forward_intermediates(backbone.normalization(images), [2, 11], norm=True)[1]
        maps = backbone(images)
    for actual, reference in zip((maps[0], maps[-1]), expected, strict=True):
        torch.testing.assert_close(actual, reference, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "encoder"),
    [
        ("vit_small_patch14_dinov2", "dinov2_windowed_small"),
        ("vit_small_patch14_reg4_dinov2", "dinov2_registers_windowed_small"),
    ],
)
def test_a_timm_file_gives_the_feature_maps_of_the_timm_network(tmp_path, name, encoder):
    network = published(name)
    path = save_checkpoint(network.state_dict(), tmp_path / "dinov2.pth")
    backbone, report = loaded(spec_for(path, dataclasses.replace(SMALL, encoder=encoder)))
    assert set(report.missing) <= {"mask_token"} and not report.reinitialized and not report.unused
    check_maps(backbone, network)


def test_a_file_of_meta_is_loaded_with_its_mask_token(tmp_path):
    network = published()
    path = save_checkpoint({**network.state_dict(), "mask_token": torch.ones(1, 384)}, tmp_path / "dinov2_vits14.pth")
    backbone, report = loaded(spec_for(path))
    assert report.complete and backbone.mask_token.min() == 1
    check_maps(backbone, network)


def test_timm_is_asked_for_the_tag(monkeypatch):
    asked, network = [], published()

    def create(name, pretrained, num_classes):
        asked.append(name)
        return network

    spec = spec_for("timm")
    detector = build_detector(spec.model, 3)
    monkeypatch.setattr(timm, "create_model", create)
    assert not load_initial_weights(detector, spec, ()).reinitialized
    assert asked == ["vit_small_patch14_dinov2"]


def test_patches_and_positions_of_another_size_are_resampled(tmp_path):
    """A patch embedding of twice the size gives the same output for an image twice as large."""
    network = published()
    with torch.no_grad():
        ramp = torch.linspace(-1, 1, 14)
        network.patch_embed.proj.weight.copy_((ramp[:, None] + ramp).expand(384, 3, 14, 14) * 0.1)
    path = save_checkpoint(network.state_dict(), tmp_path / "dinov2.pth")
    changes = {"patch_size": 28, "resolution": 168, "positional_encoding_size": 6}
    backbone, report = loaded(spec_for(path, dataclasses.replace(SMALL, **changes)))
    assert not report.reinitialized and backbone.position.shape[1] == 37
    patch = torch.nn.functional.interpolate(torch.rand(1, 3, 2, 2), 14, mode="bilinear")
    with torch.no_grad():
        small = network.patch_embed.proj(patch)
        large = backbone.patch_embed(torch.nn.functional.interpolate(patch, 28, mode="bicubic"))
    torch.testing.assert_close(small, large, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("own_format", [True, False])
def test_the_vit_of_a_whole_rfdetr_is_loaded(tmp_path, own_format):
    source = build_detector(spec_for("-").model, 5).state_dict()
    payload = {"model": to_rfdetr(source)}
    if own_format:
        meta = {"version": "1", "spec": {"model": {"arch": "rfdetr"}}, "classes": [], "weights": "ema"}
        named = {f"model.model.{name}": tensor for name, tensor in source.items()}
        payload = {"state_dict": named, "tao_model": "rtdetr", "rtdetr_tool": meta}
    backbone, report = loaded(spec_for(save_checkpoint(payload, tmp_path / "whole.pth")))
    assert report.complete and torch.equal(backbone.norm.weight, source["backbone.norm.weight"])
    assert torch.equal(backbone.blocks[3].fc1.weight, source["backbone.blocks.3.fc1.weight"])


def test_the_file_of_another_network_is_refused(tmp_path):
    path = save_checkpoint(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(CheckpointError, match=r"pretrained_backbone_path: .*resnet18\.pth .*timm or Meta"):
        loaded(spec_for(path))


def test_without_network_access_the_error_has_advice(monkeypatch):
    def create(name, pretrained, num_classes):
        raise OSError("no route to host")

    spec = spec_for("timm/lvd142m")
    detector = build_detector(spec.model, 3)
    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(CheckpointError, match=r"vit_small_patch14_dinov2.lvd142m.*download the file elsewhere"):
        load_initial_weights(detector, spec, ())


def test_the_backbone_of_an_rfdetr_is_trained(make_spec, tmp_path, caplog):
    from rtdetr_tool.ops.classes import ClassMap
    from rtdetr_tool.training.module import DetectorModule

    caplog.set_level(logging.INFO)
    path = save_checkpoint(published().state_dict(), tmp_path / "dinov2.pth")
    spec = make_spec(model=spec_for(path).model)
    classes = [{"index": index, "id": index, "name": str(index)} for index in range(3)]
    module = DetectorModule(spec, ClassMap.from_list(classes, 3))
    assert all(p.requires_grad for p in module.detector.backbone.blocks.parameters())
    module.load_initial_weights()
    assert "tensors from" in caplog.text
