"""Every backbone of the catalog: row, feature maps, one training step, ONNX graph."""

from __future__ import annotations

import copy
import dataclasses
import os
import tempfile

import onnxruntime
import pytest
import torch
from timm.layers import DropPath
from torch import nn

from rtdetr_tool.catalog import BACKBONES, STRIDES
from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.onnx.export import quiet
from rtdetr_tool.losses.build import build_criterion
from rtdetr_tool.models.build import build_backbone, build_detector
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.ops.structures import Target
from rtdetr_tool.spec import ModelSpec

SIZE = (64, 96)
SMALL = dataclasses.replace(
    ModelSpec(), hidden_dim=16, nheads=2, feat_channels=[16, 16, 16], dim_feedforward=24, num_queries=8, dec_layers=1,
    dn_number=4,
)  # fmt: skip
SMALLEST = (
    "resnet_18", "convnextv2_nano", "fan_tiny", "efficientvit_b0", "edgenext_x_small", "edgenext_xx_small_bn_hs",
)  # fmt: skip
QUICK = (*SMALLEST, "timm/regnety_002", "timm/efficientnet_lite0")  # one split into parts, one not


def with_levels(name: str, indices: list[int]) -> ModelSpec:
    return dataclasses.replace(
        SMALL, backbone=name, num_feature_levels=len(indices), return_interm_indices=indices,
        feat_strides=[STRIDES[index] for index in indices], feat_channels=[16] * len(indices),
        use_encoder_idx=[len(indices) - 1],
    )  # fmt: skip


def build(name: str, indices: tuple[int, ...] = (1, 2, 3), **options) -> nn.Module:
    """A backbone in which every tensor has an effect."""
    torch.manual_seed(0)
    return disturb(build_backbone(with_levels(name, list(indices)), **options))


def disturb(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(torch.randn_like(tensor) * 0.1)
    return module


@pytest.fixture
def images():
    return torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", BACKBONES)
def test_a_row_of_the_catalog_is_what_is_built(name):
    row = BACKBONES[name]
    with torch.device("meta"):
        backbone = build_backbone(with_levels(name, [1, 2, 3]))
    assert (backbone.channels, backbone.strides) == (row.channels[1:], row.strides[1:])
    assert sum(parameter.numel() for parameter in backbone.parameters()) == row.parameters


@pytest.mark.parametrize("indices", [(3,), (2,), (0, 1), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("name", QUICK)
def test_one_to_four_maps_have_the_promised_shapes_and_values_whatever_else_is_built(images, name, indices):
    backbone, whole = build(name, indices).eval(), build(name, (0, 1, 2, 3)).eval()
    whole.load_state_dict(backbone.state_dict(), strict=False)
    with torch.no_grad():
        maps, all_maps = backbone(images), whole(images)
    assert [tuple(m.shape) for m in maps] == [
        (2, channels, SIZE[0] // stride, SIZE[1] // stride)
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]
    assert backbone.strides == tuple(STRIDES[index] for index in indices)
    if name in BACKBONES:
        assert backbone.channels == tuple(BACKBONES[name].channels[index] for index in indices)
    for index, result in zip(indices, maps, strict=True):
        torch.testing.assert_close(result, all_maps[index], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [*QUICK, "timm/mambaout_femto", "timm/pvt_v2_b0"])
def test_every_size_that_is_a_multiple_of_32_works(name):
    backbone = build(name).eval()
    with torch.no_grad():
        for height, width in ((32, 32), (96, 32), (160, 224)):
            shapes = [tuple(m.shape[2:]) for m in backbone(torch.rand(1, 3, height, width))]
            assert shapes == [(height // stride, width // stride) for stride in backbone.strides]


def take_a_step(name: str) -> None:
    torch.manual_seed(0)
    detector = disturb(build_detector(dataclasses.replace(SMALL, backbone=name), 3)).train()
    for module in detector.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0  # by chance a path may be dropped for both images
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.3, 0.2]])
    targets = [Target(boxes, torch.tensor([0, 2]), 0, SIZE, (float(SIZE[1]), float(SIZE[0])))] * 2
    loss = build_criterion(SMALL)(detector(torch.rand(2, 3, *SIZE), targets), targets)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    gradients = {key: tensor.grad for key, tensor in detector.backbone.named_parameters()}
    assert [key for key, gradient in gradients.items() if gradient is None] == []
    assert [key for key, gradient in gradients.items() if "conv" in key and gradient.abs().max() == 0] == []
    torch.optim.SGD(detector.parameters(), lr=0.01).step()
    assert all(torch.isfinite(tensor).all() for tensor in detector.parameters())


@pytest.mark.parametrize("name", QUICK)
def test_one_training_step_reaches_every_parameter(name):
    take_a_step(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(BACKBONES) - set(SMALLEST)))
def test_one_training_step_of_every_other_backbone_reaches_every_parameter(name):
    take_a_step(name)


@pytest.mark.parametrize("name", QUICK)
def test_recomputing_activations_changes_neither_gradients_nor_statistics(images, name):
    plain = build(name).train()
    again = build(name, activation_checkpoint=True).train()
    again.load_state_dict(plain.state_dict())
    for backbone in (plain, again):
        torch.manual_seed(1)  # the same blocks are skipped
        sum(m.square().mean() for m in backbone(images)).backward()
    for (key, a), (_, b) in zip(plain.named_parameters(), again.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=key, rtol=1e-4, atol=1e-6)
    for (key, a), (_, b) in zip(plain.named_buffers(), again.named_buffers(), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.parametrize("name", ["convnextv2_nano", "fan_tiny", "efficientvit_b1", "timm/regnety_002"])
def test_recomputing_keeps_fewer_values(images, name):
    def stored(backbone):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            backbone(images)
        return sum(sizes)

    plain, saving = build(name).train(), build(name, activation_checkpoint=True).train()
    weights = sum(parameter.numel() for parameter in plain.parameters())
    assert stored(saving) < 0.5 * (stored(plain) - weights)


@pytest.mark.parametrize("name", ["efficientvit_b0", "timm/resnet18"])
def test_folded_norms_give_the_same_maps(images, name):
    backbone = build(name).eval()
    folded = copy.deepcopy(backbone)
    folded.fold_batch_norms()
    assert any("running_mean" in key for key in backbone.state_dict())
    assert not any("running_mean" in key for key in folded.state_dict())
    with torch.no_grad():
        for ours, reference in zip(folded(images), backbone(images), strict=True):
            torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["timm/regnety_002", "timm/efficientnet_lite0", "fan_tiny"])
def test_norms_that_cannot_be_folded_stay(images, name):
    """The first has activations inside its norms, the second is not split into parts, the third pads."""
    backbone = build(name).eval()
    with torch.no_grad():
        before = backbone(images)
        backbone.fold_batch_norms()
        assert all(torch.equal(a, b) for a, b in zip(backbone(images), before, strict=True))
    assert any("running_mean" in key for key in backbone.state_dict())


class Neck(nn.Module):
    """A backbone with the encoder, whose attention fails if the batch is fixed in the graph."""

    def __init__(self, name: str) -> None:
        super().__init__()
        detector = disturb(build_detector(dataclasses.replace(SMALL, backbone=name), 3)).eval()
        self.backbone, self.encoder = detector.backbone, detector.encoder

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps = self.backbone(images)
        return [*maps, *self.encoder(maps).maps]


def onnx_difference(name: str) -> float:
    """The largest difference of any map, relative to its largest value, for batches of 1 and 3 after tracing with 2."""
    torch.manual_seed(0)
    model, images = Neck(name).eval(), torch.rand(3, 3, *SIZE)
    names = [f"map_{place}" for place in range(2 * len(model.backbone.strides))]
    largest = 0.0
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "backbone.onnx")  # with separate files for more than 2 GiB of weights
        expected = [actual.numpy() for actual in model(images)]
        model.backbone.fold_batch_norms()
        with quiet(verbose=False):  # as in the package
            torch.onnx.export(
                model, (images[:2],), file, input_names=["inputs"], output_names=names, opset_version=17,
                dynamic_axes={name: {0: "batch"} for name in ("inputs", *names)}, dynamo=False,
            )  # fmt: skip
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        actual = session.run(names, {"inputs": images[:batch].numpy()})
        pairs = zip(actual, expected, strict=True)
        largest = max(largest, *(float(abs(a - b[:batch]).max() / abs(b).max()) for a, b in pairs))
    return largest


@pytest.mark.parametrize("name", QUICK)
def test_the_onnx_graph_gives_the_same_maps(name):
    assert onnx_difference(name) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(BACKBONES) - set(SMALLEST)))
def test_the_onnx_graph_of_every_other_backbone_gives_the_same_maps(name):
    assert onnx_difference(name) < 1e-4


@pytest.mark.parametrize("name", ["convnextv2_nano", "fan_tiny", "efficientvit_b0"])
def test_a_backbone_without_freezable_parts_says_so(name):
    with torch.device("meta"):
        backbone = build_backbone(with_levels(name, [1, 2, 3]))
    detector = Detector(backbone, nn.Identity(), nn.Identity())
    assert detector.freeze_backbone(norms=False, stages=-1) == 0
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    for norms, stages in ((True, -1), (False, 0)):
        with pytest.raises(UserError, match=r"only supported with backbones.* train\.freeze"):
            detector.freeze_backbone(norms, stages)


def test_taos_convolutions_and_norms_stand_behind_the_maps_under_taos_names():
    def names_of(name, indices):
        with torch.device("meta"):
            return set(build_backbone(with_levels(name, indices)).state_dict())

    names = names_of("convnext_tiny", [0, 1, 2, 3])
    assert {"conv_256.weight", "conv_512.bias", "conv_1024.weight", "conv_2048.bias"} <= names
    assert "conv_512.weight" not in names_of("convnext_tiny", [2, 3])
    names = names_of("efficientvit_b0", [1, 2])
    assert {"norm1.weight", "norm2.bias"} <= names and "norm3.weight" not in names
    names = names_of("fan_tiny", [1, 2])
    assert {"out_norm1.weight", "blocks.7.mlp.mlp_v.dwconv.bn.running_mean"} <= names
    assert not any(name.startswith(("out_norm3", "learnable_downsample", "cls_attn_blocks")) for name in names)


def test_a_block_is_skipped_in_training_only():
    backbone = build("fan_tiny")
    images = torch.rand(1, 3, 64, 64)
    torch.manual_seed(0)
    drawn = [backbone.train()(images)[-1] for _ in range(2)]
    assert not torch.equal(*drawn)
    assert torch.equal(*(backbone.eval()(images)[-1] for _ in range(2)))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("timm/convnext_tinny", r"has no network 'convnext_tinny'; did you mean timm/convnext_tiny or "),
        ("timm/nothing_like_it_at_all_xyz", r"has no network 'nothing_like_it_at_all_xyz'$"),
        (
            "timm/vit_tiny_patch16_224",
            r"has no map of stride 8 \(model.return_interm_indices 1\); expected one of its strides 16",
        ),
        ("timm/levit_128s", r"no map of stride 8 .* expected one of its strides 16, 32, 64"),
        ("timm/maxvit_nano_rw_256", r"does not support all input sizes that are multiples of 32 \(width"),
        ("timm/coat_lite_tiny", r"timm/coat_lite_tiny is not supported as a backbone: "),
    ],
)
def test_a_network_of_timm_that_does_not_fit_is_an_error_that_says_why(name, problem):
    with pytest.raises(UserError, match=problem):
        build_backbone(with_levels(name, [1, 2, 3]))


def test_a_network_for_one_size_is_told_to_take_any():
    backbone = build("timm/swin_s3_tiny_224", (1, 2)).eval()
    with torch.no_grad():
        assert [tuple(m.shape[2:]) for m in backbone(torch.rand(1, 3, 96, 160))] == [(12, 20), (6, 10)]
