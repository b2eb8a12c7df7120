from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from rtdetr_tool.models.backbones.timm_resnet import STAGES, ResNetBackbone
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.ops.batch_norm import fix_batch_norms

TINY = {"channels": (8, 16, 24, 32), "layers": (1, 2, 1, 1)}


@pytest.fixture
def images():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name,channels", [("resnet18", (128, 256, 512)), ("resnet50d", (512, 1024, 2048))])
def test_names_are_timms_without_the_classifier(name, channels):
    backbone = ResNetBackbone(name, (1, 2, 3))
    assert backbone.channels == channels and backbone.strides == (8, 16, 32)
    expected = timm.create_model(name).state_dict()
    own = backbone.state_dict()
    assert set(own) == {key for key in expected if not key.startswith("fc.")}
    assert all(own[key].shape == expected[key].shape for key in own)


def test_features_are_timms(images):
    network = timm.create_model("resnet18", features_only=True, out_indices=(2, 3, 4), **TINY).eval()
    backbone = ResNetBackbone("resnet18", (1, 2, 3), **TINY).eval()
    backbone.load_state_dict(network.state_dict())
    with torch.no_grad():
        for ours, reference in zip(backbone(images), network(images), strict=True):
            assert torch.equal(ours, reference)


def test_a_shallow_d_variant_projects_its_first_shortcut_and_starts_as_timms(images):
    """The official R18 and R34 have this projection, unlike timm's; as the identity it has no effect."""
    options = {**TINY, "stem_width": 4}  # the stem has as many channels as the first stage
    network = timm.create_model("resnet18d", features_only=True, out_indices=(2, 3, 4), **options).eval()
    backbone = ResNetBackbone("resnet18d", (1, 2, 3), **options).eval()
    missing = backbone.load_state_dict(network.state_dict(), strict=False).missing_keys
    assert missing and all(key.startswith("layer1.0.downsample.") for key in missing)
    with torch.no_grad():
        for ours, reference in zip(backbone(images), network(images), strict=True):
            torch.testing.assert_close(ours, reference, atol=1e-4, rtol=1e-4)
    assert ResNetBackbone("resnet50d", (3,)).layer1[0].downsample is not None
    assert ResNetBackbone("resnet18", (3,)).layer1[0].downsample is None


@pytest.mark.parametrize("indices,strides", [((0, 1), (4, 8)), ((0, 1, 2, 3), (4, 8, 16, 32)), ((2,), (16,))])
def test_only_the_stages_asked_for_exist(images, indices, strides):
    backbone = ResNetBackbone("resnet18", indices, **TINY)
    maps = backbone(images)
    assert backbone.strides == strides and backbone.channels == tuple(TINY["channels"][i] for i in indices)
    assert [m.shape[1] for m in maps] == list(backbone.channels)
    assert [64 // m.shape[-1] for m in maps] == list(strides)
    assert hasattr(backbone, f"layer{max(indices) + 1}") and not hasattr(backbone, f"layer{max(indices) + 2}")


def test_recomputing_stages_changes_neither_outputs_gradients_nor_statistics(images):
    plain = ResNetBackbone("resnet18d", (1, 2, 3), **TINY)
    again = copy.deepcopy(plain)
    again.activation_checkpoint = True
    for backbone in (plain, again):
        sum(m.square().mean() for m in backbone(images)).backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), again.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for (name, a), (_, b) in zip(plain.named_buffers(), again.named_buffers(), strict=True):
        assert torch.equal(a, b), name


def test_recomputing_keeps_fewer_tensors(images):
    def stored(backbone):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            backbone(images)
        return sum(sizes)

    options = {"channels": (64, 64, 64, 64), "layers": (4, 2, 1, 1)}
    plain = ResNetBackbone("resnet18", (1, 2, 3), **options)
    assert stored(ResNetBackbone("resnet18", (1, 2, 3), activation_checkpoint=True, **options)) < 0.5 * stored(plain)


@pytest.mark.parametrize("name", ["resnet18", "resnet18d"])
def test_frozen_norms_and_stem_stay_as_they_are_in_training(images, name):
    backbone = ResNetBackbone(name, (3,), **TINY)
    with torch.no_grad():
        backbone(images)  # statistics that are not the initial ones
    detector = Detector(copy.deepcopy(backbone), nn.Identity(), nn.Identity())
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert detector.freeze_backbone(norms=True, stages=0) == norms
    frozen = detector.train().backbone
    backbone.eval()
    before = copy.deepcopy(frozen.state_dict())
    out = frozen(images)[0]
    torch.testing.assert_close(out, backbone(images)[0], atol=1e-5, rtol=1e-5)
    assert all(torch.equal(before[name], tensor) for name, tensor in frozen.state_dict().items())
    trained = {name for name, parameter in frozen.named_parameters() if parameter.requires_grad}
    assert trained and not any(name.startswith(("conv1.", "bn1.")) or ".bn" in name for name in trained)
    assert "layer1.0.conv1.weight" in trained
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())


@pytest.mark.parametrize("stages", [-1, 0, 1, 3, 4])
def test_the_first_stages_are_frozen(images, stages):
    detector = Detector(ResNetBackbone("resnet18", (3,), **TINY), nn.Identity(), nn.Identity())
    assert detector.freeze_backbone(norms=False, stages=stages) == 0
    backbone = detector.train().backbone
    parts = [("conv1", "bn1"), *((stage,) for stage in STAGES)]
    expected = {name for part in parts[stages + 1 :] for name in part}
    before = copy.deepcopy(backbone.state_dict())
    backbone(images)  # statistics of norms change
    after = backbone.state_dict()
    assert {name.split(".")[0] for name, p in backbone.named_parameters() if p.requires_grad} == expected
    moved = {name.split(".")[0] for name, tensor in after.items() if not torch.equal(before[name], tensor)}
    assert moved == expected - {"conv1"}


@pytest.mark.parametrize("name", ["resnet18", "resnet18d", "resnet50d"])
@pytest.mark.parametrize("frozen", [True, False])
def test_folded_norms_give_the_same_maps(images, name, frozen):
    torch.manual_seed(0)
    backbone = ResNetBackbone(name, (1, 3), **TINY)
    for norm in backbone.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
    with torch.no_grad():
        backbone(images)
    if frozen:
        fix_batch_norms(backbone)
    backbone.eval()
    folded = copy.deepcopy(backbone)
    folded.fold_batch_norms()
    assert not any("running_mean" in name for name in folded.state_dict())
    with torch.no_grad():
        for ours, reference in zip(folded(images), backbone(images), strict=True):
            torch.testing.assert_close(ours, reference, atol=1e-4, rtol=1e-4)
