"""DINOv3 backbones: timm's maps at any size, freezing, adapters, folded normalization, ONNX graphs."""

from __future__ import annotations

import copy
import dataclasses
import logging
from importlib.util import find_spec

import pytest
import timm
import torch
from torch import nn

from rtdetr_tool.catalog import BACKBONES, DINOV3_LICENSE
from rtdetr_tool.checkpoints.io import save_checkpoint
from rtdetr_tool.losses.build import build_criterion
from rtdetr_tool.models.adapters import add_adapters
from rtdetr_tool.models.backbones.dinov3 import Dinov3ConvNext, Dinov3Vit
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops.pixels import normalize
from rtdetr_tool.ops.structures import Target
from rtdetr_tool.spec import DatasetSpec, ExperimentSpec, ModelSpec
from rtdetr_tool.training.freezing import freeze
from rtdetr_tool.training.initial_weights import load_initial_weights
from rtdetr_tool.training.optim import parameter_groups
from tests.models.onnx_maps import check_onnx_maps

VIT = "vit_small_patch16_dinov3"
VITS = (VIT, "vit_small_plus_patch16_dinov3", "vit_base_patch16_dinov3")
SMALL_VIT = {"embed_dim": 32, "depth": 4, "num_heads": 2, "init_values": 0.5}
SMALL_CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "ls_init_value": 0.5}
ALL = (0, 1, 2, 3)
SIZES = ((64, 64), (32, 96), (160, 64))


def vit(name=VIT, indices=ALL, **options) -> Dinov3Vit:
    torch.manual_seed(0)
    backbone = Dinov3Vit(name, indices, **{**SMALL_VIT, **options}).eval()
    with torch.no_grad():  # weights with which patches do not attend to all others in the same way
        for parameter in backbone.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return backbone


def convnext(indices=ALL, **options) -> Dinov3ConvNext:
    torch.manual_seed(0)
    return Dinov3ConvNext("convnext_tiny", indices, **{**SMALL_CONVNEXT, **options}).eval()


def images(size=(64, 96), batch=2, channels=3):
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", VITS)
@torch.no_grad()
def test_the_maps_of_a_vit_are_timms_after_each_quarter_of_the_blocks(name, size):
    backbone = vit(name, depth=8)
    network = timm.create_model(name, num_classes=0, **{**SMALL_VIT, "depth": 8}).eval()
    network.load_state_dict(backbone.published.state_dict())
    expected = network.forward_intermediates(normalize(images(size)), [1, 3, 5, 7], norm=True, intermediates_only=True)
    for ours, reference in zip(backbone.vit_maps(images(size)), expected, strict=True):
        assert reference.shape[2:] == (size[0] // 16, size[1] // 16)
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", SIZES, ids=str)
@torch.no_grad()
def test_the_maps_of_a_convnext_are_timms(size):
    backbone = convnext()
    network = timm.create_model("convnext_tiny", features_only=True, **SMALL_CONVNEXT).eval()
    names = {
        name.replace("_", ".", 1) if name[:5] in ("stem_", "stage") else name: name for name in network.state_dict()
    }
    network.load_state_dict({names[name]: tensor for name, tensor in backbone.published.state_dict().items()})
    for ours, reference in zip(backbone(images(size)), network(normalize(images(size))), strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("build", [vit, convnext])
@torch.no_grad()
def test_an_image_has_the_same_maps_whichever_sizes_were_run_before(build):
    backbone, fresh = build(), build()
    for size in SIZES:
        backbone(images(size))
    for ours, reference in zip(backbone(images()), fresh(images()), strict=True):
        assert torch.equal(ours, reference)


@torch.no_grad()
def test_equal_patches_at_different_places_have_different_tokens():
    patch = images((16, 16))
    first, _, last = vit().vit_maps(torch.cat([patch, 1 - patch, patch], dim=-1))[-1][0, :, 0].T
    assert (first - last).abs().max() > 1e-2


@pytest.mark.parametrize("indices", [(3,), (2,), (0, 1), (1, 2, 3)], ids=str)
@pytest.mark.parametrize("build", [vit, convnext])
@torch.no_grad()
def test_one_to_four_maps_have_the_promised_shapes(build, indices):
    backbone = build(indices=indices)
    for size in SIZES:
        shapes = [tuple(m.shape[1:]) for m in backbone(images(size))]
        assert shapes == [
            (channels, size[0] // stride, size[1] // stride)
            for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
        ]


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("build", [vit, convnext])
@torch.no_grad()
def test_normalization_is_folded_into_the_first_convolution(build, channels):
    backbone = build(num_channels=channels)
    folded = copy.deepcopy(backbone)
    folded.fold_batch_norms()
    assert isinstance(folded.normalization, nn.Identity)
    batch = images(channels=channels)
    for ours, reference in zip(folded(batch), backbone(batch), strict=True):
        torch.testing.assert_close(ours, reference, atol=2e-5, rtol=1e-4)
    folded.fold_batch_norms()  # no effect
    assert torch.equal(folded(batch)[-1], folded(batch)[-1])


@pytest.mark.parametrize("build", [vit, convnext])
def test_recomputing_activations_changes_no_gradients(build):
    plain, again = build().train(), build(activation_checkpoint=True).train()
    for backbone in (plain, again):
        sum(m.square().mean() for m in backbone(images())).backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), again.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("build", [vit, convnext])
@torch.no_grad()
def test_the_onnx_graph_gives_the_same_maps_for_other_batches(build, tmp_path):
    backbone, batch = build(indices=(1, 2, 3)), images(batch=3)
    expected = backbone(batch)
    backbone.fold_batch_norms()
    check_onnx_maps(backbone, batch, expected, tmp_path / "backbone.onnx")


@pytest.fixture
def detector_spec(monkeypatch):
    """A detector with a small ViT."""
    row = BACKBONES["dinov3_vit_small"]
    monkeypatch.setitem(BACKBONES, row.name, row._replace(options=SMALL_VIT))
    return dataclasses.replace(
        ModelSpec(), backbone=row.name, hidden_dim=16, nheads=2, feat_channels=[16, 16, 16], dim_feedforward=24,
        num_queries=8, dec_layers=1, train_backbone=False,
    )  # fmt: skip


def trained_parts(detector) -> set[str]:
    """The modules below the backbone with weights that are trained."""
    return {name.split(".")[0] for name, p in detector.backbone.named_parameters() if p.requires_grad}


def test_the_layers_after_a_frozen_vit_are_trained_with_the_learning_rate_of_the_detector(detector_spec):
    detector = build_detector(detector_spec, 3).train()
    assert trained_parts(detector) == {"pyramid"}
    assert not detector.backbone.network.training and detector.backbone.pyramid.training
    groups = parameter_groups(detector, lr=1e-4, lr_backbone=1e-5, weight_decay=0.1)
    assert {group["lr"] for group in groups} == {1e-4}
    whole = build_detector(dataclasses.replace(detector_spec, train_backbone=True), 3)
    assert trained_parts(whole) == {"pyramid", "network"}
    rates = {
        id(p): g["lr"]
        for g in parameter_groups(whole, lr=1e-4, lr_backbone=1e-5, weight_decay=0.1)
        for p in g["params"]
    }
    for name, parameter in whole.backbone.named_parameters():
        assert rates[id(parameter)] == (1e-4 if name.startswith("pyramid.") else 1e-5), name


@pytest.mark.parametrize("frozen", [True, False])
def test_a_training_step_at_each_of_several_sizes_reaches_every_trained_parameter(detector_spec, frozen):
    torch.manual_seed(0)
    detector = build_detector(dataclasses.replace(detector_spec, train_backbone=not frozen), 3).train()
    before = {name: tensor.clone() for name, tensor in detector.backbone.named_parameters()}
    boxes, optimizer = torch.tensor([[0.3, 0.3, 0.2, 0.2]]), torch.optim.SGD(detector.parameters(), lr=0.1)
    for height, width in SIZES:
        target = Target(boxes, torch.tensor([1]), 0, (height, width), (float(width), float(height)))
        batch = [target] * 2
        loss = build_criterion(detector_spec)(detector(images((height, width)), batch), batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        assert torch.isfinite(loss)
        optimizer.step()
    for name, parameter in detector.backbone.named_parameters():
        is_trained = name.startswith("pyramid.") or not frozen
        assert torch.equal(parameter, before[name]) != is_trained, name


def test_a_frozen_backbone_without_weights_is_warned_about(detector_spec, caplog):
    caplog.set_level(logging.WARNING)
    for frozen in (False, True):
        spec = ExperimentSpec(
            model=dataclasses.replace(detector_spec, train_backbone=not frozen), dataset=DatasetSpec(num_classes=3)
        )
        detector = build_detector(spec.model, 3)
        text = freeze(detector, spec, spec)
        assert load_initial_weights(detector, spec, ()) is None
        assert ("The backbone has random weights, which this run does not train" in caplog.text) == frozen
        assert ("the backbone except for layers that are not in published weights" in text) == frozen


def test_the_backbone_of_a_detector_is_loaded_with_its_pyramid(detector_spec, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    torch.manual_seed(0)
    trained, fresh = build_detector(detector_spec, 3), build_detector(detector_spec, 3)
    path = tmp_path / "detector.pth"
    save_checkpoint({"state_dict": trained.state_dict()}, path)
    model = dataclasses.replace(detector_spec, pretrained_backbone_path=str(path))
    report = load_initial_weights(fresh, ExperimentSpec(model=model, dataset=DatasetSpec(num_classes=3)), ())
    assert report.complete
    assert "published under the DINOv3 License, which also applies to weights trained from them" in caplog.text
    loaded = fresh.backbone.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in trained.backbone.state_dict().items())


@pytest.mark.skipif(find_spec("peft") is None, reason="requires peft")
@pytest.mark.parametrize("dora", [True, False])
def test_adapters_are_in_the_attention_of_the_vit_and_the_pyramid_is_trained(detector_spec, dora):
    detector = build_detector(dataclasses.replace(detector_spec, train_backbone=True), 3)
    layers = add_adapters(detector, rank=2, alpha=2.0, dora=dora, modules=None)
    assert layers == [f"network.blocks.{block}.attn.qkv" for block in range(4)]
    trained = {name for name, p in detector.backbone.named_parameters() if p.requires_grad}
    assert all(name.startswith("pyramid.") or ".lora_" in name for name in trained)
    assert trained_parts(detector) == {"pyramid", "network"}


def test_every_row_states_the_license_and_how_its_channels_follow():
    rows = [row for row in BACKBONES.values() if row.name.startswith("dinov3_")]
    assert len(rows) == 7 and {row.license for row in rows} == {DINOV3_LICENSE}
    assert all(".dinov3_lvd1689m" in row.weights or "_dinov3.lvd1689m" in row.weights for row in rows)
    known = set(timm.list_pretrained())
    assert all(row.weights.removeprefix("timm/") in known for row in rows)
