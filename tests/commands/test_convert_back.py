"""`rtdetr convert --to tao | official | rfdetr`: back into the programs that weights come from."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from rtdetr_tool.checkpoints.io import load_checkpoint, save_checkpoint
from rtdetr_tool.cli import main
from rtdetr_tool.families.rfdetr.names import from_rfdetr
from rtdetr_tool.formats.opening import open_detector
from rtdetr_tool.spec import read_spec
from tests.checkpoints.layouts import official_shapes, random_weights, tao_shapes

logging.getLogger("rf-detr").setLevel(logging.ERROR)
SIZE = ["dataset.augmentation.eval_spatial_size=[64,64]"]
SMALL = {"width": 64, "inner": 1024, "layers": 2, "expansion": 1.0, "classes": 3}


def convert(*arguments) -> int:
    return main(["convert", *map(str, arguments)])


def opened(path):
    return open_detector(str(path), read_spec(None)).detector.eval()


def assert_same_outputs(one, other, side: int = 64):
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = one(images), other(images)
    torch.testing.assert_close(first.logits, second.logits)
    torch.testing.assert_close(first.boxes, second.boxes)


def assert_equal_tensors(found, expected):
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        name: tuple(tensor.shape) for name, tensor in expected.items()
    }
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("depth", [18, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("version", [1, 2])
def test_official_weights_come_back_with_all_keys(tmp_path, version, depth):
    weights = random_weights(official_shapes(version, depth, **SMALL))
    if version == 2:
        for layer in range(SMALL["layers"]):
            weights[f"decoder.decoder.layers.{layer}.cross_attn.num_points_scale"] = torch.full((12,), 0.25)
    torch.save({"model": weights}, tmp_path / "official.pth")
    assert convert(tmp_path / "official.pth", tmp_path / "ours.pth") == 0
    size = ["dataset.augmentation.eval_spatial_size=[640,640]"]
    assert convert(tmp_path / "ours.pth", tmp_path / "back.pth", "--to", "official", *size) == 0
    back = load_checkpoint(tmp_path / "back.pth")["model"]
    constants = ("decoder.anchors", "decoder.valid_mask")  # random above; computed by the official code
    assert_equal_tensors(
        {name: back[name] for name in back if name not in constants},
        {name: weights[name] for name in weights if name not in constants},
    )
    if version == 2:
        assert back["decoder.anchors"].shape == (1, 8400, 4) and back["decoder.valid_mask"].dtype == torch.bool
        assert torch.equal(back["decoder.anchors"].isinf().any(-1), ~back["decoder.valid_mask"][..., 0])
    assert_same_outputs(opened(tmp_path / "ours.pth"), opened(tmp_path / "back.pth"))


@pytest.mark.parametrize("depth", [18, pytest.param(50, marks=pytest.mark.slow)])
def test_tao_weights_come_back_with_all_keys(tmp_path, depth):
    weights = random_weights(tao_shapes(depth, **SMALL))
    torch.save({"state_dict": weights, "tao_model": "rtdetr"}, tmp_path / "tao.pth")
    assert convert(tmp_path / "tao.pth", tmp_path / "ours.pth") == 0
    assert convert(tmp_path / "ours.pth", tmp_path / "back.pth", "--to", "tao") == 0
    back = load_checkpoint(tmp_path / "back.pth")
    assert back["tao_model"] == "rtdetr" and "rtdetr_tool" not in back and "pytorch-lightning_version" in back
    assert_equal_tensors(back["state_dict"], weights)
    assert_same_outputs(opened(tmp_path / "ours.pth"), opened(tmp_path / "back.pth"))


@pytest.mark.parametrize(
    ("backbone", "marker", "lacks"),
    [
        ("convnextv2_nano", "downsample_layers.0.0.weight", "the last norm"),
        ("edgenext_x_small", "downsample_layers.0.0.weight", "the last norm"),
        ("efficientvit_b0", "input_stem.op_list.0.conv.weight", ""),
        pytest.param("convnext_tiny", "downsample_layers.0.0.weight", "the last norm", marks=pytest.mark.slow),
        pytest.param("efficientvit_l0", "stages.0.op_list.0.conv.weight", "", marks=pytest.mark.slow),
        pytest.param("fan_tiny", "patch_embed.backbone.stem.0.weight", "the class blocks", marks=pytest.mark.slow),
    ],
)
def test_other_backbones_have_the_names_of_tao(project, tmp_path, backbone, marker, lacks, caplog):
    project.spec["model"] |= {
        "backbone": backbone, "nheads": 8, "dim_feedforward": 1024,
    }  # fmt: skip
    checkpoint = project.checkpoint(lively=True)
    assert convert(checkpoint, tmp_path / "tao.pth", "--to", "tao") == 0
    names = load_checkpoint(tmp_path / "tao.pth")["state_dict"].keys()
    assert f"model.model.backbone.{marker}" in names
    assert ("lacks" in caplog.text) == bool(lacks) and lacks in caplog.text
    assert_same_outputs(opened(checkpoint), opened_with_heads(tmp_path / "tao.pth"))


def opened_with_heads(path):
    return open_detector(str(path), read_spec(None, ["model.num_queries=8"])).detector.eval()


@pytest.mark.parametrize(
    ("changes", "to", "message"),
    [
        ({}, "official", "model.backbone is timm/test_resnet"),
        ({"backbone": "resnet_18d"}, "tao", "model.backbone is resnet_18d, which TAO does not have"),
        ({"backbone": "resnet_18"}, "tao", "model.nheads is 2, but 8 in TAO's decoder"),
        ({"backbone": "resnet_18", "nheads": 8, "num_points": [2]}, "tao", "model.num_points is [2]"),
        ({}, "rfdetr", "model.arch rtdetr cannot be written for rfdetr"),
    ],
)  # fmt: skip
def test_what_a_program_does_not_have_is_refused_and_nothing_written(project, tmp_path, changes, to, message, capsys):
    project.spec["model"] |= changes
    assert convert(project.checkpoint(), tmp_path / "out.pth", "--to", to) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(
    ("target", "to"), [("out", "tao"), ("out.safetensors", "official"), ("out.pth", "hf"), ("out.onnx", "rfdetr")]
)
def test_a_target_that_does_not_fit_is_named(project, tmp_path, target, to, capsys):
    assert convert(project.checkpoint(), tmp_path / target, "--to", to) == 2
    assert "is invalid for --to" in capsys.readouterr().err


def rfdetr_checkpoint(project):
    project.spec["model"] = {
        "arch": "rfdetr",
        "rfdetr": {"resolution": 64, "dec_layers": 1, "num_queries": 8, "group_detr": 2},
    }
    project.spec["dataset"]["augmentation"] = {"multi_scales": []}
    path = project.checkpoint()
    payload, generator = load_checkpoint(path), torch.Generator().manual_seed(0)
    for name, tensor in payload["state_dict"].items():  # away from zero, so that every tensor matters
        if tensor.is_floating_point() and ("bbox" in name or "sampling_offsets" in name or "refpoint" in name):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    save_checkpoint(payload, path)
    return path


def test_rfdetr_comes_back_with_all_tensors_and_names(project, tmp_path):
    checkpoint = rfdetr_checkpoint(project)
    assert convert(checkpoint, tmp_path / "back.pth", "--to", "rfdetr") == 0
    one = open_detector(str(checkpoint), read_spec(None))
    other = open_detector(str(tmp_path / "back.pth"), read_spec(None))
    assert_equal_tensors(other.detector.state_dict(), one.detector.state_dict())
    assert other.class_map.names[1] == "cat"
    assert_same_outputs(one.detector.eval(), other.detector.eval())


@pytest.mark.slow
def test_both_classes_named_rfdetr_nano_open_the_file(project, tmp_path):
    """`RFDETRNano(pretrain_weights=...)` of this package and of the original one have the weights of the checkpoint."""
    package = pytest.importorskip("rfdetr", reason="requires the package rfdetr")
    from rtdetr_tool.api import RFDETRNano

    checkpoint, back = rfdetr_checkpoint(project), str(tmp_path / "back.pth")
    assert convert(checkpoint, Path(back), "--to", "rfdetr") == 0
    expected = open_detector(str(checkpoint), read_spec(None)).detector.state_dict()
    ours = RFDETRNano(pretrain_weights=back, device="cpu")
    assert_equal_tensors(ours.network.state_dict(), expected)
    settings = load_checkpoint(back)["args"]
    names = ("resolution", "dec_layers", "num_queries", "group_detr", "positional_encoding_size", "num_classes")
    reference = package.RFDETRNano(pretrain_weights=back, device="cpu", **{name: settings[name] for name in names})
    found = from_rfdetr(reference.model.model.state_dict())
    assert_equal_tensors(found, {name: tensor for name, tensor in expected.items() if name in found})
    assert set(expected) == set(found)
    assert list(reference.class_names) == list(ours.class_names)


def test_the_package_rfdetr_opens_the_file_and_detects_the_same(project, tmp_path):
    rfdetr_models = pytest.importorskip("rfdetr.models", reason="needs the package rfdetr")
    from tests.parity.rfdetr_pair import normalized, their_config

    checkpoint = rfdetr_checkpoint(project)
    assert convert(checkpoint, tmp_path / "back.pth", "--to", "rfdetr") == 0
    file = load_checkpoint(tmp_path / "back.pth")
    settings = file["args"]
    taken = ("resolution", "dec_layers", "num_queries", "group_detr", "positional_encoding_size")
    config = their_config("nano", **{name: settings[name] for name in taken})
    config.num_classes = settings["num_classes"]
    theirs = rfdetr_models.build_model_from_config(config)
    assert theirs.load_state_dict(file["model"], strict=True)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = theirs.eval()(normalized(images)), opened(checkpoint)(images)
    torch.testing.assert_close(found.logits, expected["pred_logits"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.boxes, expected["pred_boxes"], atol=1e-4, rtol=1e-4)
