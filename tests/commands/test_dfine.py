"""D-FINE through the commands: train, evaluate, inference, export, convert, distill, and the Python API."""

from __future__ import annotations

import json
import re

import pytest
import torch

from rtdetr_tool.checkpoints.detector_file import read_detector
from rtdetr_tool.checkpoints.io import load_checkpoint, save_checkpoint
from rtdetr_tool.cli import main
from rtdetr_tool.families.dfine.build import build_detector
from rtdetr_tool.families.dfine.official import TABLE
from rtdetr_tool.spec import spec_from_dict

DFINE = {"variant": "n", "num_queries": 8, "dn_number": 4, "dec_layers": 2}


@pytest.fixture(scope="module")
def project(make_project, tmp_path_factory):
    """A project with a detector that was trained for two steps."""
    project = make_project(tmp_path_factory.mktemp("dfine"))
    project.spec["model"] = {"arch": "dfine", "num_select": 8, "dfine": DFINE}
    project.spec["train"] = {"accelerator": "cpu", "num_epochs": 1, "precision": "fp32"}
    project.write()
    assert project.run("train") == 0
    return project


@pytest.fixture
def weights(project):
    return project.folder / "results/train/rtdetr_model_latest.pth"


def scores(project, name: str, *overrides: str) -> float:
    folder = project.folder / name
    assert project.run("evaluate", f"evaluate.results_dir={folder}", *overrides) == 0
    lines = [json.loads(line) for line in (folder / "status.json").read_text().splitlines()]
    return [line["kpi"] for line in lines if line.get("kpi")][-1]["test_mAP50"]


def official_file(weights, path):
    """The same weights as the official code saves them."""
    tensors = {n.removeprefix("model.model."): t for n, t in load_checkpoint(weights)["state_dict"].items()}
    words = {"input_proj": ("conv", "norm"), "enc_output": ("proj", "norm")}
    renamed = {}
    for name, tensor in tensors.items():
        if found := re.fullmatch(r"(encoder\.(input_proj)\.\d+|decoder\.(enc_output))\.(\d)(\..*)", name):
            name = f"{found[1]}.{words[found[2] or found[3]][int(found[4])]}{found[5]}"
        renamed[name] = tensor
    renamed |= {"decoder.up": torch.tensor([0.5]), "decoder.reg_scale": torch.tensor([4.0])}
    save_checkpoint({"model": renamed, "ema": {"module": renamed}, "last_epoch": 0}, path)
    return path


def test_training_logs_its_own_losses(project):
    header = next((project.folder / "results/train").rglob("metrics.csv")).read_text().splitlines()[0]
    assert {"loss_vfl", "loss_bbox", "loss_giou", "loss_fgl"} <= {
        name.removeprefix("train/") for name in header.split(",")
    }


def test_the_exported_graph_has_the_score_of_the_weights(project, weights):
    graph = project.folder / "dfine.onnx"
    assert project.run("export", f"export.checkpoint={weights}", f"export.onnx_file={graph}") == 0
    in_torch = scores(project, "in_torch", f"evaluate.checkpoint={weights}")
    assert scores(project, "in_onnx", f"evaluate.checkpoint={graph}") == pytest.approx(in_torch, abs=1e-6)


def test_the_openvino_file_has_the_score_of_the_weights(project, weights):
    pytest.importorskip("openvino")
    file = project.folder / "dfine.xml"
    arguments = [f"export.checkpoint={weights}", f"export.onnx_file={file}", "export.format=openvino"]
    assert project.run("export", *arguments) == 0
    in_torch = scores(project, "in_torch", f"evaluate.checkpoint={weights}")
    assert scores(project, "in_openvino", f"evaluate.checkpoint={file}") == pytest.approx(in_torch, abs=1e-6)


def test_it_detects_objects_in_a_folder(project, weights):
    assert project.run("inference", f"inference.checkpoint={weights}") == 0


def test_a_run_starts_from_official_weights(project, weights, capfd):
    path = official_file(weights, project.folder / "dfine_n_custom.pth")
    results = project.folder / "second"
    overrides = [f"train.pretrained_model_path={path}", f"train.results_dir={results}", "train.is_dry_run=true"]
    assert project.run("train", *overrides) == 0
    assert "an official D-FINE checkpoint" in capfd.readouterr().err


def test_official_files_are_converted_without_a_difference(project, weights):
    ours = read_detector(weights)
    path = official_file(weights, project.folder / "official.pth")
    file = read_detector(path, {"dfine": {"num_queries": 8}})
    assert file.kind == "official_dfine"
    assert set(file.weights) == set(ours.weights)
    assert all(torch.equal(file.weights[name], tensor) for name, tensor in ours.weights.items())
    assert file.meta["spec"]["model"]["dfine"] == {"variant": "n", "dec_layers": 2, "num_queries": 8}
    assert main(["convert", str(path), str(project.folder / "ours.pth")]) == 0
    assert len(TABLE) == len({foreign for foreign, _ in TABLE})


def test_transformers_loads_what_is_written_for_it_and_is_read_back(project, weights):
    transformers = pytest.importorskip("transformers")
    folder = project.folder / "transformers"
    assert main(["convert", str(weights), str(folder), "--to", "transformers"]) == 0
    model, info = transformers.DFineForObjectDetection.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert model.config.id2label == {0: "class_0", 1: "cat"}
    spec = spec_from_dict({"model": {"arch": "dfine", "dfine": DFINE}})
    detector = build_detector(spec.model, 2, False).eval()
    detector.load_state_dict(read_detector(weights).weights)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images).logits, detector(images).logits, atol=1e-4, rtol=1e-4)
    back = read_detector(folder)
    assert all(torch.equal(back.weights[name], tensor) for name, tensor in read_detector(weights).weights.items())
    assert back.meta["spec"]["model"]["dfine"]["num_queries"] == 8


def test_a_file_of_another_design_is_refused_with_its_backbone(project, weights):
    tensors = dict(read_detector(weights).weights)
    tensors["backbone.stem.stem4.conv.weight"] = torch.zeros(40, 16, 1, 1)
    save_checkpoint(tensors, project.folder / "other.pth")
    with pytest.raises(Exception, match=r"40 channels in its stem .* expected an HGNetV2 B0, B2, B4 or B5"):
        read_detector(project.folder / "other.pth")


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_it_is_a_student_and_a_teacher_of_distillation(project, weights, make_project, tmp_path, role):
    other = make_project(tmp_path)
    rtdetr, dfine = other.spec["model"], {"arch": "dfine", "num_select": 8, "dfine": DFINE}
    teacher_weights = weights
    if role == "student":
        teacher_weights = other.checkpoint()
        other.spec["model"], teacher = dfine, rtdetr
    else:
        teacher = dfine
    bindings = [
        {"teacher_module_name": name, "student_module_name": name, "criterion": criterion, "weight": 1.0}
        for name, criterion in (("pred_logits", "KL"), ("pred_boxes", "L1"))
    ]
    other.spec["distill"] = {
        "teacher": teacher, "pretrained_teacher_model_path": str(teacher_weights), "bindings": bindings,
    }  # fmt: skip
    other.write()
    assert other.run("distill") == 0


def test_the_python_api_has_a_class_for_each_variant(weights):
    from rtdetr_tool import DFINE as Base
    from rtdetr_tool import DFINENano

    detector = DFINENano(num_classes=3, num_queries=5)
    assert repr(detector).startswith("DFINENano(dfine-n, 3 class")
    opened = Base.from_checkpoint(weights)
    assert type(opened) is DFINENano
    assert set(opened.predict(torch.rand(3, 64, 64), threshold=0.0).class_id) <= {1}
