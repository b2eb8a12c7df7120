"""`rtdetr distill` on the command line: files, teachers and invalid input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rtdetr_tool.checkpoints.io import load_checkpoint, save_checkpoint
from rtdetr_tool.commands.distill import open_teacher
from rtdetr_tool.spec import read_spec
from rtdetr_tool.spec.fields import MISSING
from rtdetr_tool.spec.schema import walk_fields

ROOT = Path(__file__).parents[2]
BINDING = "{teacher_module_name: srcs, student_module_name: srcs, criterion: IOU, weight: 20}"
WIDE = ("model.hidden_dim=24", "model.feat_channels=[24,24,24]")
"""The student of these tests; the teacher is the project's network of width 16."""


def bindings(teacher_module_name="srcs", student_module_name="srcs", criterion="IOU", weight=20) -> str:
    ends = f"teacher_module_name: {teacher_module_name}, student_module_name: {student_module_name}"
    return f"distill.bindings=[{{{ends}, criterion: {criterion}, weight: {weight}}}]"


@pytest.fixture
def distill(project):
    """`distill(*overrides)` runs the command on the project with its untrained checkpoint as teacher."""
    teacher = project.checkpoint(lively=True)

    def run(*overrides: str, **settings: str) -> int:
        settings = {"bindings": f"[{BINDING}]", "pretrained_teacher_model_path": str(teacher), **settings}
        return project.run(
            "distill", *WIDE, *(f"distill.{name}={value}" for name, value in settings.items()), *overrides
        )

    return run


def failure(project) -> str:
    return project.status("distill")[-1]["message"]


@pytest.mark.slow
def test_a_distilled_student_can_be_evaluated(project, distill):
    project.spec["train"] = {"accelerator": "cpu", "num_epochs": 1, "activation_checkpoint": False}
    project.write()
    assert distill() == 0
    folder = project.folder / "results" / "distill"
    names = {path.name for path in folder.iterdir()}
    assert {"experiment.yaml", "status.json", "log.txt", "model_epoch_000.pth", "rtdetr_model_latest.pth"} <= names
    assert not (project.folder / "results" / "train").exists()
    lines = project.status("distill")
    assert lines[-1]["status"] == "SUCCESS"
    figures = next(line["kpi"] for line in lines if line.get("message") == "Train metrics generated.")
    assert figures["train_loss_distillation"] > 0
    log = (folder / "log.txt").read_text()
    assert "Distillation: srcs of the student follows srcs of the teacher (IOU, weight 20), through learned" in log
    checkpoint = folder / "rtdetr_model_latest.pth"
    assert load_checkpoint(checkpoint)["rtdetr_tool"]["spec"]["distill"]["bindings"][0]["weight"] == 20.0
    assert distill("train.num_epochs=2") == 0  # another epoch: the run resumes
    assert any("Resuming from" in line.get("message", "") for line in project.status("distill"))
    assert (folder / "model_epoch_001.pth").exists()
    assert project.run("evaluate", f"evaluate.checkpoint={checkpoint}", *WIDE) == 0


# Each field of the section


def test_results_dir_moves_the_results(project, distill, tmp_path):
    place = tmp_path / "elsewhere"
    assert distill(results_dir=str(place)) == 0
    assert (place / "status.json").exists()
    assert not (project.folder / "results").exists()


def test_align_error_refuses_different_shapes(project, distill):
    assert distill(align="project") == 0
    assert distill(align="error") == 2
    assert "distill.align is error" in failure(project)


@pytest.mark.slow
def test_the_rest_of_the_section_reaches_the_loss(project, distill, monkeypatch):
    """Temperature, warm-up and decay change the loss of a dry run's one step (of epoch 0)."""
    from rtdetr_tool.training import fit as fitting

    losses = []
    original = fitting.dry_run

    def seen(*arguments):
        result = original(*arguments)
        losses.append(result.metrics["train/loss"])
        return result

    monkeypatch.setattr(fitting, "dry_run", seen)
    kl = bindings(criterion="KL").split("=", 1)[1]
    decay = "distill.decay_from_epoch=0"
    changes = [(), ("distill.temperature=4.0",), ("distill.warmup_epochs=10",), (decay,),
               (decay, "distill.final_factor=0.5"), ("model.distillation_loss_coef=0.4",)]  # fmt: skip
    for change in changes:
        assert distill("train.num_epochs=10", *change, bindings=kl) == 0
    assert len({round(loss, 6) for loss in losses}) == len(changes)


def test_load_teacher_enc_dec_is_logged(project, distill):
    same = ("model.hidden_dim=16", "model.feat_channels=[16,16,16]", "model.load_teacher_enc_dec=true")
    assert distill(*same) == 0
    log = (project.folder / "results" / "distill" / "log.txt").read_text()
    assert "tensors of encoder and decoder from the teacher." in log


# The teacher


def test_the_teacher_has_the_architecture_of_its_file(project):
    teacher = f"distill.pretrained_teacher_model_path={project.checkpoint()}"
    loaded = read_spec(project.spec_file, [teacher, bindings(), *WIDE], "distill")
    assert loaded.spec.distill.teacher.hidden_dim == 256  # the default, which was not set
    opened = open_teacher(loaded)
    assert opened.detector.encoder.hidden_dim == 16 and opened.class_map.name_of(1) == "cat"


def test_a_teacher_section_that_contradicts_the_file_is_an_error(project, distill):
    assert distill("distill.teacher.backbone=convnext_large") == 2
    both = "distill.teacher.backbone is 'convnext_large' in the spec, but 'timm/test_resnet' in the checkpoint"
    assert both in failure(project)


def test_a_teacher_of_stretched_images_is_refused_for_padded_ones(project, distill):
    assert distill("dataset.augmentation.preserve_aspect_ratio=true") == 2
    said = failure(project)
    assert "preserve_aspect_ratio false, but this run uses true" in said and "model_epoch_000.pth" in said


def test_a_teacher_trained_at_another_size_is_a_warning(project, distill, capsys):
    assert distill("dataset.augmentation.train_spatial_size=[96,96]") == 0
    assert "was trained for 64 x 64, but gets images of 96 x 96" in capsys.readouterr().err


def test_every_field_of_the_teacher_is_a_field_of_model():
    """They are built by the same code, whose effects `test_field_effects` shows."""
    names = [name for name, _, _ in walk_fields()]
    assert {name[16:] for name in names if name.startswith("distill.teacher.")} == {
        name[6:] for name in names if name.startswith("model.")
    }


def test_weights_without_our_metadata_can_be_a_teacher(project, distill):
    weights = {
        name.removeprefix("model.model."): tensor
        for name, tensor in load_checkpoint(project.checkpoint())["state_dict"].items()
    }
    path = save_checkpoint({"state_dict": weights}, project.folder / "bare.pth")
    known = ("distill.teacher.backbone=timm/test_resnet", "distill.teacher.nheads=2")
    assert distill(*known, pretrained_teacher_model_path=str(path)) == 0


def test_a_transformers_detector_can_be_a_teacher(project, distill, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    backbone = transformers.RTDetrResNetConfig(
        depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic", out_indices=[2, 3, 4]
    )
    config = transformers.RTDetrConfig(
        backbone_config=backbone, d_model=32, encoder_hidden_dim=32, encoder_in_channels=[128, 256, 512],
        encoder_ffn_dim=48, encoder_attention_heads=4, decoder_attention_heads=4, decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=40, decoder_layers=2, num_queries=12, id2label={0: "cat", 1: "dog", 2: "cow"},
        label2id={"cat": 0, "dog": 1, "cow": 2},
    )  # fmt: skip
    folder = tmp_path / "teacher"
    transformers.RTDetrForObjectDetection(config).save_pretrained(folder)
    predictions = bindings("pred_logits", "pred_logits", "KL")
    assert distill(predictions, pretrained_teacher_model_path=str(folder)) == 0  # it has cats and other classes
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"cat"', '"hen"'))
    assert distill(pretrained_teacher_model_path=str(folder)) == 0
    log = (project.folder / "results" / "distill" / "log.txt").read_text()
    assert "the teacher has 3 classes (0: hen, 1: dog, 2: cow), the data 2 (1: cat)" in log
    assert distill(predictions, pretrained_teacher_model_path=str(folder)) == 2


# Invalid input, with one message each


@pytest.mark.parametrize(
    ("overrides", "settings", "words"),
    [
        ([], {"pretrained_teacher_model_path": "/nowhere/teacher.pth"},
         "distill.pretrained_teacher_model_path: /nowhere/teacher.pth does not exist"),
        ([bindings("src", criterion="L2")], {},
         "distill.bindings[0].teacher_module_name: the teacher has no module 'src' (did you mean srcs"),
        ([bindings("backbone.layer2", "srcs", "L2")], {}, "they have 3 and 1 levels"),
    ],
)  # fmt: skip
def test_a_wrong_teacher_or_binding_is_one_message(project, distill, capsys, overrides, settings, words):
    assert distill(*overrides, **settings) == 2
    assert words in failure(project)
    assert "Traceback" not in capsys.readouterr().err


def test_predictions_of_a_teacher_with_other_classes_are_refused(project, distill):
    project.coco["categories"] = [{"id": 1, "name": "dog"}]
    project.write()
    assert distill(bindings("pred_logits", "pred_logits", "KL")) == 2
    assert "the teacher has 2 classes (1: cat), the data 2 (1: dog)" in failure(project)
    assert distill() == 0  # features can be used


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ([bindings("srcs", "pred_logits", "L2")],
         "distill.bindings[0]: srcs cannot be bound to the student's pred_logits; expected the same prediction"),
        ([bindings("bb_feats", "bb_feats")],
         "distill.bindings[0].criterion: IOU is invalid; expected, with bb_feats, one of L1, L2, KL (IOU is supported "
         "for srcs, dsrcs, pred_boxes)"),
        ([bindings("pred_boxes", "pred_boxes", "KL")],
         "distill.bindings[0].criterion: KL is invalid; expected, with pred_boxes, one of L1, L2, IOU"),
        ([bindings(weight=-1)], "distill.bindings[0].weight: -1.0 is invalid; expected at least 0"),
        (["distill.bindings=[]"],
         "distill.bindings: [] is invalid; expected at least one pair of outputs, such as "
         "{teacher_module_name: srcs, student_module_name: srcs, criterion: IOU, weight: 20}"),
        (["distill.decay_from_epoch=99"],
         "distill.decay_from_epoch: 99 is invalid; expected below train.num_epochs (72)"),
    ],
)  # fmt: skip
def test_invalid_bindings_are_reported_by_the_spec(project, distill, capsys, overrides, problem):
    assert distill("train.num_epochs=72", *overrides) == 2
    assert f"  - {problem}" in capsys.readouterr().err


# The specs in the repository


@pytest.mark.parametrize("path", sorted((ROOT / "specs").glob("distill_*.yaml")), ids=lambda path: path.name)
def test_shipped_specs_only_require_paths(path):
    place = "{image_dir: /a, json_file: /b}"
    gaps = [f"dataset.{split}_data_sources={place}" for split in ("train", "val")] if "demo" not in path.name else []
    loaded = read_spec(path, [*gaps, "distill.pretrained_teacher_model_path=/teacher.pth"], "distill")
    assert not loaded.notes
    assert [b.criterion for b in loaded.spec.distill.bindings][:1] == ["IOU"]


def test_the_example_of_taos_documentation_runs_at_small_sizes(project, tmp_path):
    """All of its distill section at small sizes; the teacher is its ConvNeXt-L with small widths."""
    from rtdetr_tool.checkpoints.metadata import build_metadata
    from rtdetr_tool.models.build import build_detector
    from rtdetr_tool.spec import spec_from_dict, spec_to_dict
    from rtdetr_tool.spec.documents import read_file

    data = read_file(ROOT / "specs" / "distill_convnext_large.yaml")
    small = {"hidden_dim": 16, "nheads": 2, "feat_channels": [16, 16, 16], "dim_feedforward": 16, "dec_layers": 1}
    data["model"] |= {**small, "backbone": "resnet_18", "num_queries": 8, "num_select": 8}
    data["distill"]["teacher"] |= {**small, "backbone": "convnext_tiny", "num_queries": 8, "num_select": 8}
    data["dataset"] = project.spec["dataset"]
    data |= {"train": project.spec["train"], "wandb": {"enable": False}, "results_dir": str(tmp_path / "results")}
    spec = spec_from_dict({**project.spec, "model": {**data["distill"]["teacher"]}}, "train")
    weights = build_detector(spec.model, 2).state_dict()
    meta = build_metadata("test", spec_to_dict(spec), [{"index": 1, "id": 1, "name": "cat"}])
    payload = {"state_dict": {f"model.model.{name}": t for name, t in weights.items()}, "rtdetr_tool": meta}
    data["distill"]["pretrained_teacher_model_path"] = MISSING
    project.spec_file.write_text(json.dumps(data))
    path = save_checkpoint({**payload, "tao_model": "rtdetr"}, tmp_path / "teacher.pth")
    assert project.run("distill", f"distill.pretrained_teacher_model_path={path}") == 0
