"""`model.freeze_norm`, `model.freeze_at`, and the reference recipe when they are not set."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch

from rtdetr_tool.api.train_arguments import TrainArguments
from rtdetr_tool.api.training import train as train_from_python
from rtdetr_tool.checkpoints.detector_file import read_detector
from rtdetr_tool.checkpoints.io import save_checkpoint
from rtdetr_tool.errors import CheckpointError, UserError
from rtdetr_tool.formats.opening import OpenedDetector
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops.batch_norm import FixedBatchNorm2d
from rtdetr_tool.spec import ExperimentSpec, spec_from_dict
from rtdetr_tool.training.datamodule import DetectionDataModule
from rtdetr_tool.training.fit import fit
from rtdetr_tool.training.freezing import resolve_freezing
from rtdetr_tool.training.module import DetectorModule

BACKBONE, DETECTOR = "model.pretrained_backbone_path", "train.pretrained_model_path"
FROZEN, TRAINED = (True, 0), (False, -1)


def spec_of(backbone: str, start: str | None, **model) -> ExperimentSpec:
    data = {"model": {"backbone": backbone, **model}, "train": {}}
    if start:
        section, name = start.split(".")
        data[section][name] = "/weights.pth"
    return spec_from_dict(data)


@pytest.mark.parametrize(
    ("backbone", "start", "expected"),
    [  # the official RT-DETR: R50 and R101 frozen in every run, R18 and R34 in none
        *((f"resnet_{depth}d", start, FROZEN) for depth in (50, 101) for start in (BACKBONE, DETECTOR)),
        *((f"resnet_{depth}d", start, TRAINED) for depth in (18, 34) for start in (BACKBONE, DETECTOR)),
        # TAO: all ResNets that start from backbone weights, none that start from detector weights
        *((f"resnet_{depth}", BACKBONE, FROZEN) for depth in (18, 34, 50, 101)),
        *((f"resnet_{depth}", DETECTOR, TRAINED) for depth in (18, 34, 50, 101)),
        *((backbone, None, TRAINED) for backbone in ("resnet_50", "resnet_50d")),
        *((backbone, BACKBONE, TRAINED) for backbone in ("fan_tiny", "convnext_tiny", "timm/test_resnet")),
    ],
)
def test_unset_fields_follow_the_reference_recipe(backbone, start, expected):
    model = resolve_freezing(spec_of(backbone, start)).model
    assert (model.freeze_norm, model.freeze_at) == expected


@pytest.mark.parametrize("start", [BACKBONE, DETECTOR, None])
def test_set_fields_take_precedence(start):
    model = resolve_freezing(spec_of("resnet_50d", start, freeze_norm=False, freeze_at=2)).model
    assert (model.freeze_norm, model.freeze_at) == (False, 2)
    assert resolve_freezing(spec_of("resnet_50d", start, freeze_norm=False)).model.freeze_at == (0 if start else -1)


def module_of(make_spec, caplog, **changes) -> tuple[DetectorModule, str]:
    spec = make_spec(**changes)
    datamodule = DetectionDataModule(spec)
    datamodule.setup("fit")
    caplog.clear()
    with caplog.at_level(logging.INFO, "rtdetr_tool"):
        module = DetectorModule(spec, datamodule.class_map)
    return module, next(m for m in (r.getMessage() for r in caplog.records) if m.startswith("Frozen:"))


def trained_of_backbone(module: DetectorModule) -> set[str]:
    return {name for name, parameter in module.detector.backbone.named_parameters() if parameter.requires_grad}


def test_a_published_r50_is_fine_tuned_like_in_the_official_code(make_spec, caplog):
    changes = {"model__backbone": "resnet_50d", "train__pretrained_model_path": "/r50.pth"}
    module, message = module_of(make_spec, caplog, **changes)
    trained = trained_of_backbone(module)
    norms = [name for name, part in module.detector.backbone.named_modules() if isinstance(part, FixedBatchNorm2d)]
    assert len(norms) == 55
    assert not any(name.startswith(("conv1.", "bn1.")) for name in trained)
    assert trained == {name for name, _ in module.detector.backbone.named_parameters() if not name.startswith("conv1.")}
    assert not any(name.rpartition(".")[0] in norms for name in trained)
    assert message == (
        "Frozen: the stem of the backbone (model.freeze_at: 0), the 55 batch norms of the backbone (model.freeze_norm: "
        "true) (fields that are not set follow the reference recipe of resnet_50d)"
    )
    grouped = sum(len(group["params"]) for group in module.parameter_groups())
    assert grouped == sum(parameter.requires_grad for parameter in module.detector.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "Frozen: nothing; training all weights"),
        ({"model__backbone": "resnet_18", "train__pretrained_model_path": "/tao.pth"},
         "Frozen: nothing; training all weights"),
        ({"model__train_backbone": False}, "Frozen: the backbone (model.train_backbone: false)"),
        ({"train__freeze": ["encoder", "decoder.decoder"]},
         "Frozen: encoder (train.freeze), decoder.decoder (train.freeze)"),
        ({"model__backbone": "resnet_18", "model__freeze_norm": True, "model__freeze_at": 2},
         "Frozen: the stem and the first two stages of the backbone (model.freeze_at: 2), the 20 batch norms of the "
         "backbone (model.freeze_norm: true)"),
    ],
)  # fmt: skip
def test_frozen_parts_are_logged(make_spec, caplog, changes, message):
    assert module_of(make_spec, caplog, **changes)[1] == message


@pytest.mark.parametrize("field", [{"model__freeze_norm": True}, {"model__freeze_at": 0}])
def test_freezing_a_backbone_other_than_a_resnet_is_refused(make_spec, caplog, field):
    with pytest.raises(UserError, match=r"only supported with backbones"):
        module_of(make_spec, caplog, **field)


@pytest.fixture
def resnet(make_spec):
    """Specs of a small run with a ResNet, and the weights of such a detector."""
    changes = {"model__backbone": "resnet_18d", "train__optim__lr_backbone": 1e-2}

    def make(**more):
        return make_spec(**{**changes, **more})

    return make


def test_frozen_tensors_do_not_change_and_are_recorded(resnet, tmp_path):
    torch.manual_seed(3)
    start = build_detector(resnet().model, 3)
    with torch.no_grad():
        for module in start.backbone.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_()
    save_checkpoint({"state_dict": start.state_dict()}, tmp_path / "start.pth")
    spec = resnet(train__pretrained_model_path=str(tmp_path / "start.pth"), model__freeze_norm=True, model__freeze_at=0)
    result = fit(spec)
    file = read_detector(result.latest_path)
    assert (file.meta["spec"]["model"]["freeze_norm"], file.meta["spec"]["model"]["freeze_at"]) == (True, 0)
    before = start.backbone.state_dict()
    same = {
        name for name, tensor in before.items()
        if f"backbone.{name}" in file.weights and torch.equal(file.weights[f"backbone.{name}"], tensor)
    }  # fmt: skip
    fixed = {name for name in before if name.startswith(("conv1.", "bn1.")) or "running" in name or ".bn" in name}
    assert same == {name for name in fixed | {n for n in before if ".downsample.2." in n} if "num_batches" not in name}


def test_resuming_with_other_frozen_parts_is_refused(resnet):
    fit(resnet(model__freeze_norm=False, model__freeze_at=-1))
    with pytest.raises(CheckpointError, match=r"freeze_norm is True, but False in the checkpoint"):
        fit(resnet(model__freeze_norm=True, train__num_epochs=2))


@pytest.mark.parametrize(("meta", "frozen"), [({"classes": []}, True), ({}, False)])
def test_training_from_python_follows_the_recipe_for_weights_of_a_file(make_spec, caplog, meta, frozen):
    model = dataclasses.replace(make_spec().model, backbone="resnet_50d")
    spec = make_spec(model=model, train__is_dry_run=True)
    opened = OpenedDetector(build_detector(model, 3), meta, None, spec)
    with caplog.at_level(logging.INFO, "rtdetr_tool"):
        train_from_python(opened, {"dataset.num_classes": 3, "train.results_dir": "x"}, None, TrainArguments({}, ()))
    assert ("the 55 batch norms" in caplog.text) is frozen
