"""Tests of rtdetr_tool.checkpoints.detector_file: files of all supported programs."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from rtdetr_tool.checkpoints.detector_file import is_model_directory, read_detector
from rtdetr_tool.checkpoints.io import read_weights, save_checkpoint
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.spec import ModelSpec

from .layouts import official_shapes, random_weights, tao_shapes

SMALL = {"classes": 7, "width": 32, "inner": 48, "layers": 2}
# The expected content of the small files.
FIELDS = {
    "num_feature_levels": 3, "return_interm_indices": [1, 2, 3], "feat_strides": [8, 16, 32], "hidden_dim": 32,
    "feat_channels": [32, 32, 32], "enc_layers": 1, "dim_feedforward": 48, "depth_mult": 1, "dec_layers": 2,
    "num_points": [4], "nheads": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def official():
    return {version: random_weights(official_shapes(version, **SMALL)) for version in (1, 2)}


@pytest.fixture(scope="module")
def tao():
    return random_weights(tao_shapes(**SMALL))


@pytest.fixture(scope="module")
def transformers_folder(tmp_path_factory):
    """A random RT-DETRv2 written by transformers."""
    transformers = pytest.importorskip("transformers")
    backbone = transformers.RTDetrResNetConfig(
        depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic", out_indices=[2, 3, 4]
    )
    config = transformers.RTDetrV2Config(
        backbone_config=backbone, d_model=48, encoder_hidden_dim=32, encoder_in_channels=[128, 256, 512],
        encoder_ffn_dim=48, encoder_attention_heads=4, decoder_attention_heads=4, decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=40, decoder_layers=2, num_queries=20, hidden_expansion=0.5, decoder_method="discrete",
        decoder_n_points=2, decoder_offset_scale=0.25, id2label={0: "cat", 1: "dog", 2: "cow"},
        label2id={"cat": 0, "dog": 1, "cow": 2},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("transformers")
    transformers.RTDetrV2ForObjectDetection(config).save_pretrained(folder)
    transformers.RTDetrImageProcessor(size={"height": 320, "width": 416}).save_pretrained(folder)
    return folder


def fits(file) -> bool:
    """Whether the weights are exactly those of the detector that the metadata describes."""
    spec = file.meta["spec"]
    detector = build_detector(ModelSpec(**spec["model"]), spec["dataset"]["num_classes"])
    own = {name for name in detector.state_dict() if not name.endswith("num_batches_tracked")}
    return own == {name for name in file.weights if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("version", [1, 2])
def test_the_averaged_weights_of_an_official_checkpoint_are_used(official, tmp_path, version):
    averaged = official[version]
    trained = {name: torch.zeros_like(tensor) for name, tensor in averaged.items()}
    payload = {"model": trained, "ema": {"module": averaged, "updates": 3}, "last_epoch": 1, "date": "2024-01-01"}
    torch.save(payload, tmp_path / "a.pth")
    file = read_detector(tmp_path / "a.pth")
    name = "RT-DETRv2" if version == 2 else "RT-DETR"
    assert file.what == f"an official {name} checkpoint, averaged weights (EMA)" and file.meta["weights"] == "ema"
    assert file.meta["spec"]["model"] == {**FIELDS, "backbone": "resnet_18d", "expansion": 0.5}
    assert file.meta["spec"]["dataset"] == {"num_classes": 7} and file.meta["classes"] == []
    assert torch.equal(file.weights["backbone.conv1.0.weight"], averaged["backbone.conv1.conv1_1.conv.weight"])
    assert fits(file)


def test_the_trained_weights_of_an_official_checkpoint_are_the_fallback(official, tmp_path):
    torch.save({"model": official[1]}, tmp_path / "a.pth")
    file = read_detector(tmp_path / "a.pth")
    assert file.what == "an official RT-DETR checkpoint" and file.meta["weights"] == "raw"
    assert fits(file)


@pytest.mark.parametrize("points", [[2], [4, 2, 1]])
def test_the_points_per_level_follow_from_an_official_v2_checkpoint(official, tmp_path, points):
    each = points * 3 if len(points) == 1 else points
    weights, total = dict(official[2]), 8 * sum(each)
    for layer in range(2):
        name = f"decoder.decoder.layers.{layer}.cross_attn."
        weights[f"{name}num_points_scale"] = torch.tensor([1 / n for n in each for _ in range(n)])
        for part, rows in (("attention_weights", total), ("sampling_offsets", 2 * total)):
            weights[f"{name}{part}.weight"], weights[f"{name}{part}.bias"] = torch.rand(rows, 32), torch.rand(rows)
    torch.save({"model": weights}, tmp_path / "a.pth")
    file = read_detector(tmp_path / "a.pth")
    assert file.meta["spec"]["model"]["num_points"] == points and file.meta["spec"]["model"]["nheads"] == 8
    assert fits(file)


@pytest.mark.parametrize("averaged", [False, True])
def test_a_tao_checkpoint_is_read(tao, tmp_path, averaged):
    state = {"opt": {}, "ema": [torch.ones(1)], "decay": 0.999} if averaged else {"state": {}}
    content = {"state_dict": tao, "epoch": 3, "tao_model": "rtdetr", "optimizer_states": [state], "loops": {}}
    torch.save(content, tmp_path / "model_epoch_003.pth")
    file = read_detector(tmp_path / "model_epoch_003.pth")
    assert file.what == f"an NVIDIA TAO checkpoint{', averaged weights (EMA)' if averaged else ''}"
    assert file.meta["spec"]["model"] == {**FIELDS, "backbone": "resnet_18", "expansion": 1.0}
    assert fits(file)
    assert set(read_weights(tmp_path / "model_epoch_003.pth")[0]) == set(file.weights)


def test_a_directory_of_transformers_gives_architecture_classes_and_size(transformers_folder):
    assert is_model_directory(transformers_folder)
    file = read_detector(transformers_folder)
    assert file.what == "a Hugging Face transformers RT-DETRv2"
    model = file.meta["spec"]["model"]
    expected = {
        "backbone": "resnet_18d", "hidden_dim": 32, "dec_hidden_dim": 48, "dim_feedforward": 48, "nheads": 4,
        "dec_dim_feedforward": 40, "num_points": [2], "cross_attn_method": "discrete", "offset_scale": 0.25,
        "num_queries": 20, "expansion": 0.5, "enc_act": "gelu", "act": "silu",
    }  # fmt: skip
    assert expected.items() <= model.items()
    assert file.meta["classes"] == [
        {"index": index, "id": None, "name": name} for index, name in enumerate(("cat", "dog", "cow"))
    ]
    sizes = {"eval_spatial_size": [320, 416], "preserve_aspect_ratio": False}
    assert file.meta["spec"]["dataset"] == {"num_classes": 3, "augmentation": sizes}
    assert fits(file)


def test_a_safetensors_file_uses_the_configuration_next_to_it(transformers_folder):
    beside = read_detector(transformers_folder / "model.safetensors")
    assert beside.meta == read_detector(transformers_folder).meta


def test_a_safetensors_file_alone_is_read_by_its_shapes_with_a_message(transformers_folder, tmp_path):
    save_file(load_file(transformers_folder / "model.safetensors"), tmp_path / "weights.safetensors")
    file = read_detector(tmp_path / "weights.safetensors")
    assert file.meta["spec"]["model"]["nheads"] == 4 and file.meta["classes"] == []
    assert "num_queries" in file.summary() and "no config.json" in file.summary()
    assert fits(file)


def test_heads_with_their_second_name_are_recognized(transformers_folder, tmp_path):
    weights = load_file(transformers_folder / "model.safetensors")
    renamed = {
        name.removeprefix("model.decoder.") if "class_embed" in name or "bbox_embed" in name else name: tensor
        for name, tensor in weights.items()
        if "denoising" not in name
    }
    save_file(renamed, tmp_path / "weights.safetensors")
    result = read_detector(tmp_path / "weights.safetensors").weights
    assert torch.equal(result["decoder.dec_score_head.1.bias"], weights["model.decoder.class_embed.1.bias"])
    assert read_detector(tmp_path / "weights.safetensors").meta["spec"]["model"]["dn_number"] == 0


def changed(folder, target, **values):
    """A copy of a transformers directory with other values in its config.json."""
    config = json.loads((folder / "config.json").read_text())
    for name, value in values.items():
        section, _, inner = name.rpartition("__")
        (config[section] if section else config)[inner] = value
    (target / "config.json").write_text(json.dumps(config))
    (target / "model.safetensors").symlink_to(folder / "model.safetensors")
    return target


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "detr"}, "model_type 'detr'; expected rt_detr or rt_detr_v2"),
        ({"normalize_before": True}, "normalize_before: True; expected False"),
        ({"learn_initial_query": True}, "learn_initial_query: True"),
        ({"decoder_attention_heads": 2}, "decoder_attention_heads: 2"),
        ({"backbone_config": {"model_type": "timm_backbone", "backbone": "vgg11"}}, "'vgg11'; expected a ResNet"),
        ({"backbone_config": None, "backbone": "swin"}, "backbone_config.model_type: 'swin'"),
        ({"backbone_config__model_type": "resnet"}, "backbone_config.model_type: 'resnet'"),
        ({"backbone_config__depths": [3, 3, 3, 3]}, r"depths \[3, 3, 3, 3\]"),
        ({"decoder_layers": 3}, "dec_layers is 3 in config.json, but 2 in the tensors"),
        ({"d_model": 64}, "dec_hidden_dim is 64 in config.json, but 48 in the tensors"),
    ],
)
def test_an_unsupported_configuration_is_refused_with_the_reason(transformers_folder, tmp_path, values, words):
    with pytest.raises(CheckpointError, match=words):
        read_detector(changed(transformers_folder, tmp_path, **values))


def test_a_corrupted_or_missing_configuration_is_named(transformers_folder, tmp_path):
    (tmp_path / "model.safetensors").symlink_to(transformers_folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        read_detector(tmp_path)
    for content in ("{broken", "[1]"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            read_detector(tmp_path)


def test_a_directory_without_weights_is_refused_with_its_content(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"notes\.txt.*expected .* with model\.safetensors"):
        read_detector(tmp_path)


def test_normalized_images_have_a_message(transformers_folder, tmp_path):
    changed(transformers_folder, tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True, "size": {"longest_edge": 9}}))
    file = read_detector(tmp_path)
    assert any("normalized" in note for note in file.notes) and any("longest_edge" in note for note in file.notes)


def test_tensors_without_a_counterpart_are_listed(official, tmp_path):
    torch.save({"model": {**official[1], "encoder.extra.weight": torch.ones(1)}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"official RT-DETR checkpoint that cannot be.*encoder\.extra\.weight"):
        read_detector(tmp_path / "a.pth")


def test_learned_queries_are_refused_by_name(official, tmp_path):
    torch.save({"model": {**official[1], "decoder.tgt_embed.weight": torch.ones(1)}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="learned initial queries"):
        read_detector(tmp_path / "a.pth")


def test_an_incomplete_detector_is_refused(tao, tmp_path):
    torch.save({"state_dict": {n: t for n, t in tao.items() if "enc_score_head" not in n}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"lacks decoder\.enc_score_head\.weight"):
        read_detector(tmp_path / "a.pth")


def bare(tmp_path, **fields):
    """Only the weights of a small detector, with our names."""
    model = ModelSpec(backbone="resnet_18", hidden_dim=32, feat_channels=[32, 32, 32], dec_layers=1, **fields)
    save_checkpoint(build_detector(model, 2).state_dict(), tmp_path / "a.pth")
    return tmp_path / "a.pth"


def test_ambiguous_heads_and_points_must_be_set(tmp_path):
    path = bare(tmp_path, nheads=4, num_points=[6])
    with pytest.raises(CheckpointError, match=r"72 points .*4 heads of 6 points.*Set model\.nheads and model\.num_p"):
        read_detector(path)
    for given in ({"nheads": 4}, {"num_points": [6]}, {"nheads": 4, "num_points": [6]}):
        model = read_detector(path, given).meta["spec"]["model"]
        assert (model["nheads"], model["num_points"]) == (4, [6])


def test_an_unknown_backbone_must_be_set(tmp_path):
    weights = torch.load(bare(tmp_path), weights_only=True)
    weights = {name.replace("backbone.layer", "backbone.part"): tensor for name, tensor in weights.items()}
    save_checkpoint(weights, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"unknown backbone.*model\.backbone"):
        read_detector(tmp_path / "b.pth")
    assert read_detector(tmp_path / "b.pth", {"backbone": "resnet_18"}).meta["spec"]["model"]["backbone"] == "resnet_18"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["res_layers.0.blocks.0.branch2a.conv.weight"], "an official RT-DETR backbone.*pretrained_backbone_path"),
        (["model.backbone.conv_encoder.model.x", "model.encoder.y"], "a DETR of Hugging Face transformers"),
        (["conv1.weight", "layer1.0.conv1.weight"], "ResNet"),
        (["vit.embeddings.cls_token", "classifier.weight"], "not a supported detector.*vit.embeddings"),
    ],
)
def test_other_networks_are_refused_by_name(tmp_path, names, found):
    save_file({name: torch.ones(1) for name in names}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=found):
        read_detector(tmp_path / "a.safetensors")
