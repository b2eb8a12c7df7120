"""Tests of rtdetr_tool.checkpoints.loading and metadata."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from rtdetr_tool.checkpoints.loading import load_into
from rtdetr_tool.checkpoints.metadata import build_metadata, check_against, differences
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families.rtdetr.weights import backbone_weights
from rtdetr_tool.spec.experiment import ExperimentSpec


def _model(classes: int = 3) -> nn.Module:
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    return nn.ModuleDict({"body": body, "enc_score_head": nn.Linear(4, classes)})


def test_equal_models_load_completely():
    source, target = _model(), _model()
    report = load_into(target, source.state_dict(), source="a.pth")
    assert report.complete and report.share == 1.0
    assert all(torch.equal(tensor, target.state_dict()[name]) for name, tensor in source.state_dict().items())


def test_another_class_count_keeps_the_heads_and_names_both_counts():
    source, target = _model(3), _model(5)
    head = target["enc_score_head"].weight.detach().clone()
    report = load_into(target, source.state_dict(), source="a.pth", strict=False)
    assert report.reinitialized["enc_score_head.weight"] == ((3, 4), (5, 4))
    assert torch.equal(target["enc_score_head"].weight, head)
    assert torch.equal(target["body"][0].weight, source["body"][0].weight)
    assert report.summary().splitlines() == [
        "Loaded 14 of 16 tensors from a.pth.",
        "The class heads keep their initial values, because the model has 5 classes (dataset.num_classes), "
        "but a.pth 3.",
    ]


def test_another_class_count_is_an_error_when_strict_and_names_both():
    target = _model(5)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(CheckpointError, match="the file has 3 classes, but the model 5"):
        load_into(target, _model(3).state_dict(), source="a.pth")
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())


def test_missing_and_unused_tensors_are_reported():
    weights = _model().state_dict()
    weights["other.weight"] = weights.pop("body.0.weight")
    with pytest.raises(CheckpointError, match=r"Not in the file.*body\.0\.weight[\s\S]*the model: other\.weight"):
        load_into(_model(), weights, source="a.pth")
    report = load_into(_model(), weights, source="a.pth", strict=False)
    assert report.missing == ["body.0.weight"] and report.unused == ["other.weight"]


def test_a_file_with_too_few_matching_tensors_is_refused_even_when_not_strict():
    weights = {name: tensor for name, tensor in _model().state_dict().items() if name.startswith("enc_score_head")}
    with pytest.raises(CheckpointError, match="only 2 of 14 tensors match"):
        load_into(_model(), weights, source="a.pth", strict=False)


def test_frozen_norms_without_a_batch_counter_match():
    weights = {name: tensor for name, tensor in _model().state_dict().items() if "num_batches" not in name}
    assert load_into(_model(), weights, source="a.pth").complete


@pytest.mark.parametrize(
    "names",
    [
        ["conv1.weight", "layer1.0.bn1.weight"],
        ["module.conv1.weight", "module.layer1.0.bn1.weight"],
        ["backbone.conv1.weight", "backbone.layer1.0.bn1.weight"],
        ["model.backbone.conv1.weight", "model.backbone.layer1.0.bn1.weight"],
        ["model.conv1.weight", "model.layer1.0.bn1.weight"],
        ["model.encoder.conv1.weight", "model.encoder.layer1.0.bn1.weight"],
        ["model.model.backbone.conv1.weight", "model.model.backbone.layer1.0.bn1.weight", "model.model.decoder.x"],
        ["ema_conv1.weight", "ema_layer1.0.bn1.weight"],
    ],
)
def test_backbones_of_all_wrappers_get_timms_names(names):
    result = backbone_weights({"state_dict": {name: torch.ones(1) for name in names}}, "a.pth")
    assert set(result) == {"conv1.weight", "layer1.0.bn1.weight"}


def _meta(spec: ExperimentSpec) -> dict:
    import dataclasses

    return build_metadata("0.1", dataclasses.asdict(spec), [{"index": 0, "id": 1, "name": "a"}])


def test_a_spec_that_contradicts_the_checkpoint_names_both_values():
    trained = ExperimentSpec()
    trained = replace(trained, model=replace(trained.model, backbone="resnet_18"))
    asked = replace(trained, model=replace(trained.model, backbone="resnet_34", hidden_dim=128))
    with pytest.raises(CheckpointError) as caught:
        check_against(asked, _meta(trained), source="a.pth")
    assert "model.backbone is 'resnet_34' in the spec, but 'resnet_18' in the checkpoint" in str(caught.value)
    assert "model.hidden_dim is 128 in the spec, but 256 in the checkpoint" in str(caught.value)


def test_a_spec_without_model_fields_matches_any_checkpoint():
    trained = ExperimentSpec()
    trained = replace(trained, model=replace(trained.model, backbone="resnet_18", dec_layers=3))
    trained = replace(trained, dataset=replace(trained.dataset, num_classes=3))
    check_against(ExperimentSpec(), _meta(trained), source="a.pth")
    with pytest.raises(CheckpointError, match=r"dataset\.num_classes is 80 in the spec, but 3 in the checkpoint"):
        check_against(ExperimentSpec(), _meta(trained), source="a.pth", every_field=True)


def test_explicit_values_count_even_if_they_are_the_default():
    trained = ExperimentSpec()
    trained = replace(trained, model=replace(trained.model, backbone="resnet_18"))
    with pytest.raises(CheckpointError, match=r"model\.backbone is 'resnet_50'"):
        check_against(ExperimentSpec(), _meta(trained), source="a.pth", explicit={"model": {"backbone": "resnet_50"}})
    check_against(ExperimentSpec(), _meta(trained), source="a.pth", explicit={"model": {"num_select": 10}})


def test_settings_that_do_not_affect_weights_may_differ():
    trained = ExperimentSpec()
    asked = replace(trained, model=replace(trained.model, num_select=100, dropout_ratio=0.5, bbox_cost=1.0))
    check_against(asked, _meta(trained), source="a.pth", every_field=True)


def test_the_report_counts_the_classes_of_file_and_model():
    report = load_into(_model(5), _model(3).state_dict(), source="a.pth", strict=False)
    assert report.class_counts == (3, 5)
    assert load_into(_model(3), _model(3).state_dict(), source="a.pth").class_counts is None


def test_only_differences_of_the_architecture_are_reported():
    trained = ExperimentSpec()
    trained = replace(trained, model=replace(trained.model, nheads=4, num_points=[4, 2, 2], num_queries=100))
    assert differences(ExperimentSpec(), _meta(trained)) == [
        "model.nheads is 8 in the spec, but 4 in the checkpoint",
        "model.num_points is [4] in the spec, but [4, 2, 2] in the checkpoint",
    ]
    assert differences(trained, _meta(trained)) == []


def test_a_frozen_foundation_model_belongs_to_the_architecture():
    trained = ExperimentSpec()
    frozen = replace(trained.model.frozen_fm, enabled=True, checkpoint="radio.pth")
    trained = replace(trained, model=replace(trained.model, frozen_fm=frozen))
    assert differences(ExperimentSpec(), _meta(trained)) == [
        "model.frozen_fm.enabled is False in the spec, but True in the checkpoint"
    ]
    given = {"model": {"frozen_fm": {"enabled": False}}}
    with pytest.raises(CheckpointError, match=r"model\.frozen_fm\.enabled is False in the spec, but True"):
        check_against(ExperimentSpec(), _meta(trained), source="a.pth", explicit=given)
    elsewhere = {"model": {"frozen_fm": {"checkpoint": "other.pth"}}}
    check_against(ExperimentSpec(), _meta(trained), source="a.pth", explicit=elsewhere)
