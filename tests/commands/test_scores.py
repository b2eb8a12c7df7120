"""Undefined scores, and images with more objects than a score counts: messages and files of each command."""

from __future__ import annotations

import json
import re

import pytest

from rtdetr_tool.data.build import scoring_of
from rtdetr_tool.data.findings import Findings
from rtdetr_tool.data.scoring import check_limits
from rtdetr_tool.spec import spec_from_dict


def scored_on(project, annotations: list[dict], **fields) -> None:
    """Validate and test on the same images with these annotations."""
    file = project.folder / "scored.json"
    file.write_text(json.dumps({**project.coco, "annotations": annotations}))
    source = {**project.spec["dataset"]["val_data_sources"], "json_file": str(file)}
    project.spec["dataset"] |= {"val_data_sources": source, "test_data_sources": source, **fields}
    project.write()


def crowded(project, count: int) -> list[dict]:
    """This many small objects in the first image."""
    return [
        {**project.coco["annotations"][0], "id": i + 1, "bbox": [i % 20 * 3, i // 20 * 3, 2, 2], "area": 4}
        for i in range(count)
    ]


def said(capsys) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("command", ["validate_data", "train"])
def test_validation_data_without_an_object_is_refused_before_anything_is_trained(project, capsys, command):
    scored_on(project, [])
    assert project.run(command, "train.is_dry_run=false") == 2
    assert "val: the split has no objects" in said(capsys)
    assert not list((project.folder / "results").rglob("*.pth"))


@pytest.mark.parametrize("command", ["validate_data", "train"])
def test_validation_data_without_an_object_of_the_scored_classes_is_refused(project, capsys, command):
    project.coco["categories"].append({"id": 2, "name": "dog"})
    scored_on(project, project.coco["annotations"], eval_class_ids=[2], num_classes=3)
    assert project.run(command) == 2
    assert "val: no objects of the scored classes" in said(capsys)


@pytest.mark.parametrize("command", ["validate_data", "train"])
def test_an_unknown_class_to_score_is_refused_before_the_first_epoch(project, capsys, command):
    scored_on(project, project.coco["annotations"], eval_class_ids=[7])
    assert project.run(command) == 2
    assert "ids that are not category ids of the dataset ([7]; expected 1: cat)" in said(capsys)


def test_evaluate_without_objects_warns_and_has_undefined_scores(project, capsys):
    project.spec["model"]["num_select"] = (
        16  # all detections, because untrained weights may prefer an output without a class
    )
    checkpoint = project.checkpoint()
    scored_on(project, [])
    assert project.run("evaluate", f"evaluate.checkpoint={checkpoint}") == 0
    text = said(capsys)
    assert "test: no scored objects" in text and "mAP -, mAP50 -" in text
    assert not re.search(r"mAP\w* -1", text)
    folder = project.folder / "results" / "evaluate"
    scores = json.loads((folder / "results.json").read_text())
    assert scores["mAP"] is None and scores["ARmax100"] is None and scores["best"]["f1"] is None
    assert json.loads((folder / "predictions.json").read_text())
    kpi = project.status("evaluate")[-1]["kpi"]
    assert "test_mAP" in kpi and set(kpi.values()) == {None}


@pytest.mark.parametrize("command", ["validate_data", "train", "evaluate"])
def test_images_with_more_objects_than_max_dets_are_named(project, capsys, command):
    checkpoint = project.checkpoint()
    scored_on(project, crowded(project, 130))
    options = [f"evaluate.checkpoint={checkpoint}"] if command == "evaluate" else []
    split = "test" if command == "evaluate" else "val"
    assert project.run(command, *options) == 0
    text = said(capsys)
    if command == "validate_data":
        report = json.loads((project.folder / "results" / command / "report.json").read_text())
        text = " ".join(f"{result['split']}: {result['count']} {result['text']}" for result in report["findings"])
        text += " ".join(example for result in report["findings"] for example in result["examples"])
    assert f"{split}: 1 images with more objects of one class than evaluate.max_dets" in text
    assert "130 of cat, evaluate.max_dets is 100" in text
    assert f"{split}: 1 images with more objects than model.num_select" in text


def test_max_dets_is_used_and_named_in_the_results(project, capsys):
    checkpoint = project.checkpoint()
    scored_on(project, crowded(project, 130))
    assert project.run("evaluate", f"evaluate.checkpoint={checkpoint}", "evaluate.max_dets=200") == 0
    scores = json.loads((project.folder / "results" / "evaluate" / "results.json").read_text())
    assert scores["max_dets"] == 200 and "ARmax200" in scores and "ARmax100" not in scores
    text = said(capsys)
    assert "of one class than evaluate.max_dets" not in text
    assert "test: evaluate.max_dets is larger than the number of detections per image" in text


@pytest.mark.parametrize(("arch", "usual"), [("rfdetr", 500), ("rtdetr", 300)])
def test_only_more_detections_than_the_models_default_are_reported(arch, usual):
    for max_dets, count in ((None, 0), (usual, 0), (usual + 1, 1)):
        settings = {} if max_dets is None else {"evaluate": {"max_dets": max_dets}}
        spec = spec_from_dict({"results_dir": "unused", "model": {"arch": arch}, **settings})
        findings = Findings()
        check_limits("val", scoring_of(spec), 80, findings)
        assert len(list(findings)) == count
