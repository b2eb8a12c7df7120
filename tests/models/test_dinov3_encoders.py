"""DINOv3 as the backbone of RF-DETR: timm's maps, windows, stages of a ConvNeXt at one stride, ONNX graphs."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F

from rtdetr_tool.catalog import ENCODERS
from rtdetr_tool.checkpoints.dinov2 import split_projections
from rtdetr_tool.checkpoints.dinov3 import WINDOWED
from rtdetr_tool.checkpoints.renames import to_native
from rtdetr_tool.families.rfdetr.encoders import encoder_of
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec
from rtdetr_tool.models.backbones.dinov3_windowed import WindowedDinov3
from rtdetr_tool.models.backbones.single_stride import SingleStrideConvNext
from rtdetr_tool.models.backbones.windowed_vit import join_windows, split_windows
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops.pixels import normalize
from rtdetr_tool.spec import ModelSpec
from tests.models.onnx_maps import check_onnx_maps

WIDTH, DEPTH, REGISTERS = 32, 6, 4
SMALL_CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "ls_init_value": 0.5}
SIZES = ((64, 64), (32, 96), (160, 64))


def images(size=(64, 96), batch=2):
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def network_of_timm(gated=False):
    torch.manual_seed(0)
    name = f"vit_small{'_plus' if gated else ''}_patch16_dinov3"
    network = timm.create_model(name, num_classes=0, embed_dim=WIDTH, depth=DEPTH, num_heads=2, init_values=0.5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network.eval()


def vit(network=None, **options) -> WindowedDinov3:
    """With the weights of a network of timm."""
    network = network or network_of_timm()
    settings = {"out_indices": (2, 4, 6), "num_windows": 1, "gated": hasattr(network.blocks[0].mlp, "fc1_g"), **options}
    backbone = WindowedDinov3(WIDTH, DEPTH, 2, **settings)
    weights = to_native(split_projections(network.state_dict()), WINDOWED)
    backbone.load_state_dict(backbone.resize_weights(weights))
    return backbone.eval()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("gated", [False, True])
@torch.no_grad()
def test_with_one_window_the_maps_are_timms(size, gated):
    network = network_of_timm(gated)
    expected = network.forward_intermediates(normalize(images(size)), [1, 3, 5], norm=True, intermediates_only=True)
    for ours, reference in zip(vit(network)(images(size)), expected, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (64, 96)], ids=str)
@torch.no_grad()
def test_windows_are_timms_blocks_with_the_rotations_of_their_part_of_the_image(size):
    """Each window is a sequence of its own for timm's blocks; in global blocks the sequences are joined."""
    network, backbone = network_of_timm(), vit(num_windows=2)
    height, width, lead = size[0] // 16, size[1] // 16, 1 + REGISTERS
    patches = network.patch_embed(normalize(images(size))).flatten(1, -2)
    rope = network.rope.get_embed([height, width])
    tokens = split_windows(patches, height, width, 2)  # [2 * 4, h * w / 4, D]
    ropes = split_windows(rope[None], height, width, 2)
    leading = torch.cat([network.cls_token, network.reg_token], 1).expand(len(tokens), -1, -1)
    tokens, maps = torch.cat([leading, tokens], 1), []
    for index, block in enumerate(network.blocks):
        if index in (2, 4):  # global: the leading tokens of all windows, then all patches
            joined = torch.cat([tokens[:, :lead].reshape(2, -1, WIDTH), tokens[:, lead:].reshape(2, -1, WIDTH)], 1)
            whole = copy.deepcopy(block)
            whole.attn.num_prefix_tokens = 4 * lead
            joined = whole(joined, rope=ropes.flatten(0, 1))
            parts = joined[:, : 4 * lead].reshape(8, lead, WIDTH), joined[:, 4 * lead :].reshape(8, -1, WIDTH)
            tokens = torch.cat(parts, 1)
        else:
            tokens = torch.stack(
                [block(tokens[number][None], rope=ropes[number % 4])[0] for number in range(len(tokens))]
            )
        if index in (1, 3, 5):
            joined = join_windows(network.norm(tokens)[:, lead:], height, width, 2)
            maps.append(joined.reshape(2, height, width, WIDTH).permute(0, 3, 1, 2))
    for ours, reference in zip(backbone(images(size)), maps, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("windows", [1, 2])
@torch.no_grad()
def test_folding_for_inference_changes_no_map_at_any_size(windows):
    backbone = vit(num_windows=windows, out_indices=(2, 4))
    folded = copy.deepcopy(backbone)
    folded.fold_for_inference()
    assert folded.normalization is None and len(folded.blocks) == 4
    for size in (*((64, 64), (32, 96)), (64, 64)):
        for ours, reference in zip(folded(images(size)), backbone(images(size)), strict=True):
            torch.testing.assert_close(ours, reference, atol=2e-5, rtol=1e-4)


def test_recomputing_activations_changes_no_gradients():
    plain, again = vit(num_windows=2).train(), vit(num_windows=2, activation_checkpoint=True).train()
    for backbone in (plain, again):
        sum(m.square().mean() for m in backbone(images())).backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), again.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name, rtol=1e-4, atol=1e-6)
        assert a.grad.abs().sum() > 0, name


@torch.no_grad()
def test_an_image_of_half_the_size_has_nearly_the_same_maps_with_patches_of_half_the_size():
    """Relative to the image, patches are at the same places."""
    large = F.interpolate(images((32, 48)), scale_factor=2, mode="bilinear")
    small = F.interpolate(large, scale_factor=0.5, mode="area")
    for ours, reference in zip(vit(patch_size=8)(small), vit()(large), strict=True):
        assert ours.shape == reference.shape
        assert F.cosine_similarity(ours, reference).min() > 0.95


def convnext(stages=(2, 3, 4), **options) -> SingleStrideConvNext:
    torch.manual_seed(0)
    return SingleStrideConvNext("convnext_tiny", stages, **SMALL_CONVNEXT, **options).eval()


@pytest.mark.parametrize("stages", [(1, 2, 3, 4), (3,), (2, 4)], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@torch.no_grad()
def test_the_stages_of_a_convnext_are_timms_at_one_stride(size, stages):
    backbone = convnext(stages)
    network = timm.create_model("convnext_tiny", features_only=True, **SMALL_CONVNEXT).eval()
    names = {
        name.replace("_", ".", 1) if name[:5] in ("stem_", "stage") else name: name for name in network.state_dict()
    }
    own = backbone.published.state_dict()
    network.load_state_dict({names[name]: tensor for name, tensor in own.items()}, strict=False)
    grid = (size[0] // 16, size[1] // 16)
    expected = network(normalize(images(size)))
    for number, ours in zip(stages, backbone(images(size)), strict=True):
        mode = "area" if number < 3 else "nearest"
        torch.testing.assert_close(ours, F.interpolate(expected[number - 1], grid, mode=mode), atol=1e-5, rtol=1e-5)
    assert backbone.strides == (16,) * len(stages) and backbone.size_multiple == 32


@pytest.mark.parametrize("build", [lambda: vit(num_windows=2), convnext], ids=["vit", "convnext"])
@torch.no_grad()
def test_the_onnx_graph_gives_the_same_maps_for_other_batches(build, tmp_path):
    backbone, batch = build(), images(batch=3)
    expected = backbone(batch)
    backbone.fold_for_inference()
    check_onnx_maps(backbone, batch, expected, tmp_path / "backbone.onnx")


@pytest.mark.parametrize("name", [name for name in ENCODERS if name.startswith("dinov3") and "large" not in name])
def test_every_encoder_has_timms_parameters_and_is_recognized(name):
    row = ENCODERS[name]
    with torch.device("meta"):
        detector = build_detector(ModelSpec(arch="rfdetr", rfdetr=RfdetrSpec(encoder=name)), 3)
        network = timm.create_model(row.timm_name.partition(".")[0], num_classes=0)
    if "convnext" in name:  # the classifier's norm
        network.head = torch.nn.Identity()
    count = sum(p.numel() for p in detector.backbone.published.parameters())
    assert count == sum(p.numel() for p in network.parameters())
    assert encoder_of(detector.backbone.state_dict()) == row
    assert row.license == "DINOv3 License" and row.timm_name in timm.list_pretrained()


def test_a_deployed_copy_runs_with_gradients_and_elsewhere_after_its_first_pass():
    network = WindowedDinov3(32, 2, 2, out_indices=(2,), num_windows=2).eval()
    network.fold_for_inference()
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        (expected,) = network(images)
    (found,) = network(images.requires_grad_())
    found.sum().backward()
    assert torch.equal(found, expected) and images.grad.abs().sum() > 0
    (elsewhere,) = network.to("meta")(torch.empty(1, 3, 64, 64, device="meta"))
    assert elsewhere.device.type == "meta" and elsewhere.shape == expected.shape
