"""`rtdetr evaluate`: files and status lines, and its numbers against pycocotools on its predictions."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
import torch
import yaml


@pytest.fixture
def weights(project):
    """Set labels to the detections of untrained weights in some images, so that the score is neither 0 nor 1."""
    torch.manual_seed(0)
    checkpoint = project.checkpoint()
    project.spec["model"]["num_select"] = 16
    project.write()
    assert project.run("inference", f"inference.checkpoint={checkpoint}", "inference.conf_threshold=0") == 0
    result = json.loads((project.folder / "results/inference/predictions.json").read_text())
    for annotation in project.coco["annotations"]:
        if annotation["image_id"] in (1, 2, 5):
            x, y, width, height = next(row["bbox"] for row in result if row["image_id"] == annotation["image_id"] - 1)
            annotation.update(bbox=[x, y, max(width, 1), max(height, 1)], area=width * height)
    project.write()
    return f"evaluate.checkpoint={checkpoint}"


def read(project, name: str):
    return json.loads((project.folder / "results" / "evaluate" / name).read_text())


def pycocotools_stats(project, predictions, category_ids=None) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(project.labels))
        evaluation = COCOeval(truth, truth.loadRes(predictions), "bbox")
        if category_ids:
            evaluation.params.catIds = category_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


def test_the_scores_are_those_of_pycocotools_on_the_written_predictions(project, weights):
    assert project.run("evaluate", weights) == 0
    scores, predictions = read(project, "results.json"), read(project, "predictions.json")
    assert {row["image_id"] for row in predictions} == {1, 2, 3, 4, 5, 6}
    assert 0 < scores["mAP50"] < 1
    assert scores["images"] == 6
    names = [name for name in scores if name.startswith("A")]
    assert len(names) == 12
    expected = pycocotools_stats(project, predictions)
    np.testing.assert_allclose([-1 if scores[n] is None else scores[n] for n in names], expected, atol=1e-9)
    assert [row["name"] for row in scores["per_class"]] == ["cat"]
    assert scores["per_class"][0]["AP50"] == pytest.approx(scores["mAP50"])


def test_the_table_shows_all_numbers_on_a_narrow_terminal(project, weights, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert project.run("evaluate", weights) == 0
    shown = capsys.readouterr()
    scores = read(project, "results.json")
    for name in [name for name in scores if name.startswith(("AP", "AR"))]:
        value = "-" if scores[name] is None or scores[name] < 0 else f"{scores[name]:.4f}"
        assert any(name in line and value in line for line in (shown.out + shown.err).splitlines()), name


def test_the_status_file_has_scores_and_ends_with_success(project, weights):
    assert project.run("evaluate", weights) == 0
    lines = project.status("evaluate")
    assert lines[-1]["status"] == "SUCCESS"
    kpi = next(line["kpi"] for line in lines if line["message"] == "Test metrics generated.")
    scores = read(project, "results.json")
    assert kpi["test_mAP"] == scores["mAP"] and kpi["test_mAP50"] == scores["mAP50"]
    assert [kpi[f"test_{name}"] for name in ("F1", "precision", "recall")] == [
        scores["best"][name] for name in ("f1", "precision", "recall")
    ]
    assert kpi["test_AP/cat"] == scores["per_class"][0]["AP"]
    undefined = {name for name, value in kpi.items() if value is None}
    assert undefined == {name for name in scores if name.startswith("A") and scores[name] is None}
    assert all(isinstance(kpi[name], (int, float)) for name in set(kpi) - undefined)


def test_a_partial_last_batch_counts_and_the_batch_size_changes_nothing(project, weights):
    scores = []
    for size in (1, 4, 6, 100):
        assert project.run("evaluate", weights, f"evaluate.batch_size={size}") == 0
        scores.append(read(project, "results.json"))
    assert all(score["images"] == 6 for score in scores)
    assert [score["mAP50"] for score in scores] == pytest.approx([scores[0]["mAP50"]] * 4, abs=1e-6)


def test_a_threshold_drops_detections_and_never_shifts_image_ids(project, weights):
    assert project.run("evaluate", weights) == 0
    everything = read(project, "predictions.json")
    threshold = sorted(row["score"] for row in everything)[len(everything) * 2 // 3]
    assert project.run("evaluate", weights, f"evaluate.conf_threshold={threshold}") == 0
    kept = read(project, "predictions.json")
    assert 0 < len(kept) < len(everything)

    def rows(table):
        return sorted((row["image_id"], tuple(row["bbox"]), row["score"]) for row in table)

    assert rows(kept) == rows([row for row in everything if row["score"] >= threshold])


def test_a_threshold_above_all_scores_gives_zero(project, weights):
    assert project.run("evaluate", weights, "evaluate.conf_threshold=1.0") == 0
    scores = read(project, "results.json")
    assert scores["mAP"] == 0 and scores["images"] == 6 and scores["detections"] == 0


def test_only_the_selected_classes_are_scored(project, weights, capsys):
    assert project.run("evaluate", weights, "dataset.eval_class_ids=[1]") == 0
    assert [row["id"] for row in read(project, "results.json")["per_class"]] == [1]
    assert project.run("evaluate", weights, "dataset.eval_class_ids=[9]") == 2
    assert "9" in capsys.readouterr().err


def test_the_preserved_aspect_ratio_of_the_checkpoint_cannot_be_changed(project, weights, capsys):
    assert project.run("evaluate", weights, "dataset.augmentation.preserve_aspect_ratio=false") == 0
    assert project.run("evaluate", weights, "dataset.augmentation.preserve_aspect_ratio=true") == 2
    said = capsys.readouterr().err
    assert "dataset.augmentation.preserve_aspect_ratio is True in the spec, but False in the checkpoint" in said
    assert "model_epoch_000.pth" in said and "Remove these fields" in said


def experiment(project, command: str) -> dict:
    return yaml.safe_load((project.folder / "results" / command / "experiment.yaml").read_text())


@pytest.mark.parametrize("command", ["evaluate", "inference"])
def test_experiment_yaml_has_the_resolved_spec_and_can_be_run_again(project, command):
    checkpoint = project.checkpoint()
    del project.spec["model"], project.spec["dataset"]["augmentation"], project.spec["dataset"]["num_classes"]
    project.write()
    assert project.run(command, f"{command}.checkpoint={checkpoint}", f"{command}.batch_size=2") == 0
    result = experiment(project, command)
    assert result["dataset"]["augmentation"]["eval_spatial_size"] == [64, 64]
    assert result["model"]["backbone"] == "timm/test_resnet" and result["dataset"]["num_classes"] == 2
    sides = [result[command][name] for name in ("input_height", "input_width", "batch_size")]
    assert sides == [64, 64, 2] and result["dataset"]["batch_size"] == 2
    first = (project.folder / "results" / command / "predictions.json").read_text()
    project.spec = result
    project.write()
    assert project.run(command) == 0
    assert experiment(project, command) == result
    assert (project.folder / "results" / command / "predictions.json").read_text() == first


def test_taos_spelling_of_the_width_works(project, weights, capsys):
    assert project.run("evaluate", weights, "evaluate.nput_width=96") == 0
    section = experiment(project, "evaluate")["evaluate"]
    assert (section["input_height"], section["input_width"]) == (64, 96)
    assert "Images are resized to 64 x 96 (height x width)" in capsys.readouterr().err


def test_a_class_of_the_labels_that_the_checkpoint_does_not_know_is_an_error(project, weights, capsys):
    project.coco["categories"][0]["name"] = "dog"
    project.write()
    assert project.run("evaluate", weights) == 2
    said = capsys.readouterr().err
    assert "dog" in said and "cat" in said
