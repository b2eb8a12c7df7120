"""`train.pretrained_model_path` and `model.pretrained_backbone_path` with files of other programs."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch
from safetensors.torch import save_file

from rtdetr_tool.checkpoints.io import save_checkpoint, save_detector
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families.rtdetr.transformers_names import to_transformers_file
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.spec import DatasetSpec, ExperimentSpec, ModelSpec, TrainSpec
from rtdetr_tool.training.initial_weights import load_initial_weights

MODEL = ModelSpec(
    backbone="resnet_18d", hidden_dim=32, nheads=4, dim_feedforward=32, feat_channels=[32, 32, 32], dec_layers=1
)
HEADS = {"decoder.dec_score_head.0.weight", "decoder.enc_score_head.weight", "decoder.denoising_class_embed.weight"}


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(1)
    return build_detector(MODEL, 7).state_dict()


def write_transformers(weights, folder):
    save_file(to_transformers_file(weights), folder / "weights.safetensors")
    return folder / "weights.safetensors"


def write_tao(weights, folder):
    named = {f"model.model.{name}": tensor for name, tensor in weights.items()}
    return save_checkpoint({"state_dict": named, "tao_model": "rtdetr"}, folder / "model_epoch_011.pth")


def write_detector(weights, folder):
    meta = {"version": "1", "spec": {"model": {"backbone": "resnet_18d", "nheads": 4}}, "classes": [], "weights": "ema"}
    return save_detector(weights, meta, folder / "detector.safetensors")


def spec_for(path, classes=7, model=MODEL):
    train = dataclasses.replace(TrainSpec(), pretrained_model_path=str(path))
    return ExperimentSpec(model=model, dataset=DatasetSpec(num_classes=classes), train=train)


@pytest.mark.parametrize(
    ("write", "what"),
    [
        (write_transformers, "a Hugging Face transformers RT-DETR"),
        (write_detector, "a checkpoint of this tool, averaged weights (EMA)"),
    ],
)
def test_all_weights_of_any_format_are_loaded_and_the_format_is_logged(weights, tmp_path, caplog, write, what):
    path = write(weights, tmp_path)
    detector = build_detector(MODEL, 7)
    with caplog.at_level(logging.INFO, "rtdetr_tool"):
        report = load_initial_weights(detector, spec_for(path), ())
    assert not (report.reinitialized or report.missing or report.unused)
    assert f"is {what}" in caplog.text and "This run differs from that of" not in caplog.text
    assert f"Copied class rows by position, because {path} has no class names" in caplog.text
    assert all(
        torch.equal(tensor, weights[name])
        for name, tensor in detector.state_dict().items()
        if not name.endswith("num_batches_tracked")
    )


def test_only_class_heads_start_from_scratch_with_another_number_of_classes(weights, tmp_path, caplog):
    detector = build_detector(MODEL, 3)
    report = load_initial_weights(detector, spec_for(write_transformers(weights, tmp_path), classes=3), ())
    assert {name for name in report.reinitialized if name.endswith("weight")} == HEADS
    assert not report.missing and not report.unused
    assert "has no class names, and its class heads have 7 rows, but those of the model 3" in caplog.text


def test_a_different_number_of_attention_heads_is_reported(weights, tmp_path, caplog):
    """TAO always samples 4 points, so 48 rows belong to 4 heads, whatever the spec has."""
    model = dataclasses.replace(MODEL, nheads=2, num_points=[8])
    path = write_tao(weights, tmp_path)
    load_initial_weights(build_detector(model, 7), spec_for(path, model=model), ())
    assert "This run differs from that of" in caplog.text and "model.nheads is 2 in the spec, but 4 in" in caplog.text


def test_weights_of_the_other_family_are_refused_with_its_name(weights, tmp_path):
    model = dataclasses.replace(MODEL, arch="rfdetr")
    with pytest.raises(CheckpointError, match=r"arch rtdetr, but the spec has rfdetr.* Set model\.arch=rtdetr"):
        load_initial_weights(torch.nn.Identity(), spec_for(write_tao(weights, tmp_path), model=model), ())


def test_the_backbone_of_a_transformers_file_is_loaded(weights, tmp_path):
    model = dataclasses.replace(MODEL, pretrained_backbone_path=str(write_transformers(weights, tmp_path)))
    detector = build_detector(model, 7)
    before = detector.decoder.enc_score_head.weight.detach().clone()
    report = load_initial_weights(detector, ExperimentSpec(model=model, dataset=DatasetSpec(num_classes=7)), ())
    assert report.complete and torch.equal(detector.backbone.bn1.weight, weights["backbone.bn1.weight"])
    assert torch.equal(detector.decoder.enc_score_head.weight, before)
