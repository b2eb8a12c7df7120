"""Files in the format of Roboflow's package, converted from our weights with the table tested in tests/parity."""

from __future__ import annotations

import argparse
import os

import pytest
import torch

from rtdetr_tool.catalog import RFDETR_VARIANTS
from rtdetr_tool.checkpoints.detector_file import read_detector
from rtdetr_tool.checkpoints.dinov2 import from_dinov2
from rtdetr_tool.checkpoints.io import save_detector
from rtdetr_tool.checkpoints.loading import load_into
from rtdetr_tool.checkpoints.metadata import build_metadata
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families.rfdetr.architecture import architecture_of_rfdetr
from rtdetr_tool.families.rfdetr.names import from_rfdetr, to_rfdetr, without_wrappers
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.spec import ModelSpec, spec_from_dict
from tests.models.rfdetr_parts import tiny_backbone, tiny_rfdetr

FEW = {"num_queries": 5, "group_detr": 2, "dim_feedforward": 16}


def detector(variant="nano", classes=4, **changes):
    torch.manual_seed(0)
    return build_detector(ModelSpec(arch="rfdetr", rfdetr=RfdetrSpec(variant=variant, **{**FEW, **changes})), classes)


def on_meta(variant, **changes):
    with torch.device("meta"):
        return build_detector(ModelSpec(arch="rfdetr", rfdetr=RfdetrSpec(variant=variant, **changes)), 91).state_dict()


@pytest.fixture(scope="module")
def weights():
    return detector().state_dict()


@pytest.mark.parametrize("variant", RFDETR_VARIANTS)
def test_variant_and_class_logits_follow_from_shapes(variant):
    model, classes = architecture_of_rfdetr(on_meta(variant))
    assert model == {"arch": "rfdetr", "rfdetr": {"variant": variant, "group_detr": 13}}
    assert classes == 91


def test_shapes_that_differ_from_the_variant_are_fields():
    changes = {"dec_layers": 5, "num_queries": 30, "group_detr": 1, "projector_scale": ["P3", "P5"]}
    actual = architecture_of_rfdetr(on_meta("small", **changes))[0]["rfdetr"]
    assert {name: actual[name] for name in changes} == changes
    rebuilt = on_meta(**actual)
    expected = on_meta("small", **changes)
    assert {n: t.shape for n, t in rebuilt.items()} == {n: t.shape for n, t in expected.items()}


@pytest.mark.parametrize(("hint", "variant"), [("rfdetrxlarge", "xlarge"), ("rf-detr-xxlarge.pth", "2xlarge")])
def test_a_name_decides_between_variants_of_the_same_shapes(hint, variant):
    weights = on_meta("xlarge", positional_encoding_size=40)  # the variant of neither
    result = architecture_of_rfdetr(weights, {"hint": hint})[0]["rfdetr"]
    assert result == {"variant": variant, "positional_encoding_size": 40, "group_detr": 13}


def test_an_unknown_patch_size_requires_a_variant():
    weights = on_meta("nano", patch_size=24)
    with pytest.raises(CheckpointError, match=r"patches of 24 pixels.*12, 14, 16, 20"):
        architecture_of_rfdetr(weights)
    assert architecture_of_rfdetr(weights, {"variant": "nano"})[0]["rfdetr"]["patch_size"] == 24


def published(weights, path, **others):
    args = argparse.Namespace(num_classes=3, class_names=["cat", "dog", "cow"], pretrain_weights="none")
    torch.save({"model": to_rfdetr(weights), "args": args, **others}, path)
    return path


def lightning(weights, path):
    state = {f"model.{name}": tensor for name, tensor in to_rfdetr(weights).items()}
    config = {"num_windows": 1, "resolution": 384, "sa_nheads": 8, "encoder": "dinov2_windowed_small"}
    torch.save({"state_dict": state, "model_name": "RFDETRNano", "model_config": config, "epoch": 3,
                "args": {"class_names": ["cat"]}}, path)  # fmt: skip
    return path


def test_a_published_file_is_read_with_its_class_names(weights, tmp_path):
    read = read_detector(published(weights, tmp_path / "rf-detr-nano.pth"))
    assert not read.ours and "RF-DETR checkpoint of Roboflow" in read.summary()
    assert read.meta["spec"]["model"]["rfdetr"]["variant"] == "nano"
    assert read.meta["spec"]["dataset"]["num_classes"] == 4
    assert [entry["name"] for entry in read.meta["classes"]] == ["cat", "dog", "cow"]
    assert set(read.weights) == set(weights)
    spec = spec_from_dict({"model": read.meta["spec"]["model"], "dataset": {"num_classes": 4}})
    assert load_into(build_detector(spec.model, 4), read.weights, source="file").complete


def test_a_lightning_file_has_settings_that_shapes_do_not_show(weights, tmp_path):
    read = read_detector(lightning(weights, tmp_path / "last.ckpt"))
    assert read.meta["spec"]["model"]["rfdetr"]["num_windows"] == 1
    assert set(read.weights) == set(weights)


def test_fields_of_the_user_take_precedence_over_the_file(weights, tmp_path):
    read = read_detector(lightning(weights, tmp_path / "last.ckpt"), {"rfdetr": {"num_windows": 4}})
    assert read.meta["spec"]["model"]["rfdetr"]["num_windows"] == 4


class Harmful:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return (os.mkdir, (str(self.folder),))


def test_an_object_other_than_a_namespace_is_refused_and_nothing_runs(tmp_path):
    path = tmp_path / "bad.pth"
    torch.save({"model": {}, "args": argparse.Namespace(callback=Harmful(tmp_path / "ran"))}, path)
    with pytest.raises(CheckpointError, match="refused"):
        read_detector(path)
    assert not (tmp_path / "ran").exists()


def test_our_own_rfdetr_checkpoint_is_read(weights, tmp_path):
    spec = spec_from_dict({"model": {"arch": "rfdetr", "rfdetr": FEW}, "dataset": {"num_classes": 4}})
    from rtdetr_tool.spec import spec_to_dict

    path = save_detector(weights, build_metadata("test", spec_to_dict(spec), []), tmp_path / "model.pth")
    read = read_detector(path)
    assert read.ours and set(read.weights) == set(weights)
    assert read.meta["spec"]["model"]["arch"] == "rfdetr"


def test_position_embeddings_are_interpolated_and_extra_groups_skipped():
    large = tiny_rfdetr(backbone={"grid": 8})
    small = tiny_rfdetr(group_detr=1, num_queries=4)
    before = {name: tensor.clone() for name, tensor in large.state_dict().items()}
    assert load_into(small, large.state_dict(), source="file").complete
    assert torch.equal(small.decoder.query_feat.weight, before["decoder.query_feat.weight"][:4])
    assert small.backbone.position.shape[1] == 1 + 36
    assert torch.equal(large.state_dict()["backbone.position"], before["backbone.position"])


def test_extra_queries_are_skipped_in_each_group():
    two = tiny_rfdetr(group_detr=2, num_queries=3)
    source = tiny_rfdetr().decoder.query_feat.weight.detach()
    load_into(two, tiny_rfdetr().state_dict(), source="file")
    assert torch.equal(two.decoder.query_feat.weight, torch.cat([source[0:3], source[7:10]]))


def test_a_file_with_other_classes_is_reported():
    with pytest.raises(CheckpointError, match="the file has 4 classes, but the model 91"):
        load_into(detector(classes=91), detector(classes=4).state_dict(), source="file")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("transformer.register_tokens", "decoder registers"),
        ("transformer.unknown.weight", None),
    ],
)
def test_an_unsupported_part_is_named(weights, name, said):
    state = {**to_rfdetr(weights), name: torch.zeros(1)}
    if said:
        with pytest.raises(CheckpointError, match=said):
            from_rfdetr(state)
    else:
        model = tiny_rfdetr()
        with pytest.raises(CheckpointError, match=r"decoder\.unknown\.weight"):
            load_into(model, {**model.state_dict(), "decoder.unknown.weight": torch.zeros(1)}, source="file")


def test_prefixes_of_wrappers_are_removed():
    assert without_wrappers("model._orig_mod.class_embed.weight") == "class_embed.weight"
    assert without_wrappers("module.model.bbox_embed.layers.0.bias") == "bbox_embed.layers.0.bias"


def test_dinov2_weights_of_transformers_fill_the_backbone():
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=42, patch_size=7
    )
    reference = transformers.Dinov2Model(config).eval()
    vit = tiny_backbone(depth=4, out_indices=(4,), patch_size=7, num_windows=1, grid=6).eval()
    vit.load_state_dict(from_dinov2(reference.state_dict()))
    images = torch.rand(1, 3, 42, 42)
    with torch.no_grad():
        expected = reference(vit.normalization(images)).last_hidden_state[:, 1:]
        actual = vit(images)[0].flatten(2).transpose(1, 2)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
