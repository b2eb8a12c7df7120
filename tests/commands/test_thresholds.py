"""Thresholds of individual classes in `inference`, set in the spec or measured by `evaluate`."""

from __future__ import annotations

import json

import pytest
import torch

from rtdetr_tool.errors import UserError
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.structures import Detections
from rtdetr_tool.spec.inference import InferenceSpec
from rtdetr_tool.workflows.thresholds import score_thresholds

CLASSES = ClassMap.from_categories({3: "cat", 5: "dog", 9: "bird"}, num_classes=4)


def measured(tmp_path, **best: float | None) -> str:
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"per_class": [{"name": n, "best": {"threshold": t}} for n, t in best.items()]}))
    return str(file)


def test_a_class_uses_its_own_threshold_then_the_measured_one_then_the_common_one(tmp_path):
    file = measured(tmp_path, cat=0.3, dog=0.4, bird=None)
    section = InferenceSpec(conf_threshold=0.6, class_thresholds={"dog": 0.9}, thresholds_from=file)
    assert score_thresholds(section, CLASSES).tolist() == pytest.approx([0.3, 0.9, 0.6, 0.6])


def test_detections_are_compared_with_the_threshold_of_their_class():
    result = Detections(torch.zeros(3, 4), torch.tensor([0.8, 0.5, 0.4]), torch.tensor([1, 0, 1]))
    assert result.above(torch.tensor([0.5, 0.45])).scores.tolist() == pytest.approx([0.8, 0.5])
    assert len(result.above(0.6)) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"catt": 0.5}, "inference.class_thresholds: catt is not a class of the model; expected cat, dog, bird"),
        ({"cat": 1.5}, "inference.class_thresholds.cat: 1.5 is invalid; expected a score from 0 to 1"),
    ],
)
def test_a_wrong_class_or_score_ends_in_one_message(values, message):
    with pytest.raises(UserError, match=message):
        score_thresholds(InferenceSpec(class_thresholds=values), CLASSES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("{", "cannot be read"),
        ("[]", "no per_class list"),
        ('{"per_class": [{"name": "cat"}]}', "no threshold for any class"),
        ('{"per_class": [{"name": "cow", "best": {"threshold": 0.5}}]}', "cow is not a class of the model"),
    ],
)
def test_a_file_without_thresholds_ends_in_one_message(tmp_path, content, message):
    file = tmp_path / "results.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message):
        score_thresholds(InferenceSpec(thresholds_from=str(file)), CLASSES)


def test_inference_writes_what_reaches_the_threshold_of_its_class(project):
    checkpoint = project.checkpoint(lively=True)
    run = ("inference", f"inference.checkpoint={checkpoint}", "inference.conf_threshold=0.0")
    assert project.run(*run) == 0
    file = project.folder / "results" / "inference" / "predictions.json"
    scores = sorted((row["score"] for row in json.loads(file.read_text())), reverse=True)
    middle = (scores[0] + scores[-1]) / 2
    assert project.run(*run, f"inference.class_thresholds={{cat:{middle}}}") == 0
    kept = [row["score"] for row in json.loads(file.read_text())]
    assert sorted(kept, reverse=True) == [score for score in scores if score >= middle] and len(kept) < len(scores)


def test_the_thresholds_of_an_evaluation_are_used(project):
    checkpoint = project.checkpoint(lively=True)
    assert project.run("inference", f"inference.checkpoint={checkpoint}", "inference.conf_threshold=0.0") == 0
    result = json.loads((project.folder / "results/inference/predictions.json").read_text())
    for annotation in project.coco["annotations"]:  # objects at detections of the model
        rows = [row for row in result if row["image_id"] == annotation["image_id"] - 1]
        x, y, width, height = max(rows, key=lambda row: row["score"])["bbox"]
        annotation.update(bbox=[x, y, max(width, 1), max(height, 1)], area=width * height)
    project.write()
    assert project.run("evaluate", f"evaluate.checkpoint={checkpoint}") == 0
    results = project.folder / "results" / "evaluate" / "results.json"
    (row,) = json.loads(results.read_text())["per_class"]
    best = row["best"]
    assert 0 < best["threshold"] < 1 and 0 < best["f1"] <= 1
    assert json.loads(results.read_text())["best"] == best  # one class only
    run = ("inference", f"inference.checkpoint={checkpoint}", f"inference.thresholds_from={results}")
    assert project.run(*run) == 0
    kept = json.loads((project.folder / "results/inference/predictions.json").read_text())
    assert len(kept) == sum(row["score"] >= best["threshold"] for row in result) > 0
