"""Dataset folders in the commands: the same data in four formats has the same score."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_dataset.py"
FORMATS = ("coco", "roboflow", "yolo", "voc")


def _load():
    spec = importlib.util.spec_from_file_location("convert_dataset", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


converter = _load()


@pytest.fixture
def folders(project):
    """The project's images in every format, each with train, val and test; its spec has no data and classes."""
    content = converter.as_boxes(project.coco)
    splits = dict.fromkeys(("train", "val", "test"), content)
    images = dict.fromkeys(splits, project.folder / "images")
    actual = {name: project.folder / name for name in FORMATS}
    for name, folder in actual.items():
        converter.write_format(name, folder, splits, images)
    for key in ("train_data_sources", "val_data_sources", "test_data_sources", "num_classes"):
        del project.spec["dataset"][key]
    project.write()
    return actual


def result(project, command: str, name: str):
    return json.loads((project.folder / "results" / command / name).read_text())


def test_one_checkpoint_scores_the_same_in_every_format(project, request):
    checkpoint = project.checkpoint(lively=True)
    assert project.run("inference", f"inference.checkpoint={checkpoint}", "inference.conf_threshold=0") == 0
    actual = result(project, "inference", "predictions.json")
    for annotation in project.coco["annotations"][::2]:  # labels that the weights detect, so that the score is not 0
        x, y, width, height = next(row["bbox"] for row in actual if row["image_id"] == annotation["image_id"] - 1)
        annotation["bbox"] = [x, y, max(width, 1), max(height, 1)]
    scores = {}
    for name, folder in request.getfixturevalue("folders").items():
        assert project.run("evaluate", f"evaluate.checkpoint={checkpoint}", f"dataset.dataset_dir={folder}") == 0
        scores[name] = result(project, "evaluate", "results.json")
    assert 0 < scores["coco"]["mAP"] < 1
    for name in FORMATS[1:]:
        numbers = {key: value for key, value in scores[name].items() if key != "per_class"}
        assert numbers == {key: value for key, value in scores["coco"].items() if key != "per_class"}
        assert [row["AP"] for row in scores[name]["per_class"]] == [row["AP"] for row in scores["coco"]["per_class"]]


@pytest.mark.slow
def test_training_uses_classes_and_splits_of_the_folder_in_every_format(project, folders):
    project.spec["train"] = {"accelerator": "cpu", "num_epochs": 1, "validation_interval": 1, "checkpoint_interval": 1}
    project.write()
    assert project.run("train", f"dataset.dataset_dir={folders['yolo']}") == 0
    written = (project.folder / "results/train/experiment.yaml").read_text()
    assert "split: val" in written
    checkpoint = next((project.folder / "results/train").glob("*.pth"))
    from rtdetr_tool.checkpoints.detector_file import read_detector

    meta = read_detector(str(checkpoint)).meta
    assert meta["spec"]["dataset"]["num_classes"] == 1 and [c["name"] for c in meta["classes"]] == ["cat"]
    for folder in folders.values():
        assert project.run("evaluate", f"evaluate.checkpoint={checkpoint}", f"dataset.dataset_dir={folder}") == 0
    out = project.folder / "model.onnx"
    overrides = [f"export.checkpoint={checkpoint}", f"export.onnx_file={out}", f"dataset.dataset_dir={folders['voc']}"]
    assert project.run("export", *overrides) == 0
    assert result(project, "export", "export.json")["pictures"] == "dataset.val_data_sources"
    project.spec["train"]["num_epochs"] = 2  # resumes, because the number of classes is the same
    project.write()
    assert project.run("train", f"dataset.dataset_dir={folders['yolo']}") == 0


def findings(project) -> set[tuple[str, str]]:
    return {(entry["kind"], entry["split"]) for entry in result(project, "validate_data", "report.json")["findings"]}


@pytest.mark.parametrize("name", FORMATS)
def test_validate_data_accepts_a_valid_folder_with_and_without_a_test_split(project, folders, name):
    place = f"dataset.dataset_dir={folders[name]}"
    assert project.run("validate_data", place) == 0
    assert set(result(project, "validate_data", "report.json")["splits"]) == {"train", "val", "test"}
    assert ("no_test_split", "test") not in findings(project)
    test_split = {"coco": "annotations/instances_test.json", "voc": "ImageSets/Main/test.txt"}.get(name, "test")
    if name == "yolo":
        data = folders[name] / "data.yaml"
        data.write_text("".join(line for line in data.read_text().splitlines(True) if not line.startswith("test:")))
    elif name == "roboflow":
        shutil.rmtree(folders[name] / test_split)
    else:
        (folders[name] / test_split).unlink()
    assert project.run("validate_data", place) == 0
    assert set(result(project, "validate_data", "report.json")["splits"]) == {"train", "val"}
    assert ("no_test_split", "test") in findings(project)
    asked_for = f"dataset.test_data_sources={{dataset_dir: {folders[name]}, split: exam}}"
    assert project.run("validate_data", place, asked_for) == 2
    assert ("unusable", "test") in findings(project)


@pytest.mark.parametrize(
    ("name", "file", "content", "code", "finding"),
    [
        ("coco", "annotations/instances_val.json", "{", 2, ("unusable", "val")),
        ("coco", "train/1.png", "", 0, ("image_replaced", "train")),
        ("coco", "val/1.png", "", 2, ("image_unreadable", "val")),
        ("roboflow", "valid/_annotations.coco.json", "[]", 2, ("unusable", "val")),
        ("roboflow", "train/1.png", "", 0, ("image_replaced", "train")),
        ("roboflow", "valid/1.png", "", 2, ("image_unreadable", "val")),
        ("yolo", "data.yaml", "val: val/images\nnames: [cat]\n", 2, ("unusable", "train")),
        ("yolo", "val/labels/1.txt", "0 0.5 0.5 0.2\n", 2, ("unusable", "val")),
        ("yolo", "val/labels/1.txt", "1 0.5 0.5 0.2 0.2\n", 2, ("unusable", "val")),
        ("yolo", "train/images/1.png", "", 0, ("image_replaced", "train")),
        ("yolo", "val/images/1.png", "", 2, ("image_unreadable", "val")),
        ("voc", "Annotations/1.xml", "<annotation>", 2, ("unusable", "train")),
        ("voc", "ImageSets/Main/val.txt", "", 2, ("unusable", "val")),
        ("voc", "JPEGImages/1.png", "", 2, ("image_unreadable", "val")),
    ],
)
def test_validate_data_distinguishes_errors_from_warnings(project, folders, name, file, content, code, finding):
    (folders[name] / file).write_text(content)
    assert project.run("validate_data", f"dataset.dataset_dir={folders[name]}") == code
    assert finding in findings(project)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["dataset.dataset_dir={folder}/nowhere"], "does not exist"),
        (["dataset.dataset_dir={folder}/results_of_nothing"], "no dataset in a supported format"),
        (["dataset.dataset_dir={folder}/yolo", "dataset.format=voc"], "dataset.format is voc"),
        (["dataset.dataset_dir={folder}/yolo", "dataset.format=tfrecord"], "one of auto, coco, roboflow, yolo, voc"),
        (["dataset.dataset_dir={folder}/yolo", "dataset.num_classes=0"], "at least 1"),
        (
            [
                "dataset.dataset_dir={folder}/voc",
                *(f"dataset.{name}_data_sources={{{{dataset_dir: a, split: b}}}}" for name in ("train", "val", "test")),
            ],
            "has no effect, because train_, val_ and test_data_sources are all set",
        ),
        (["dataset.format=yolo"], "no source has a dataset_dir"),
        (["dataset.train_data_sources=[{{dataset_dir: {folder}/yolo, json_file: a}}]"], "json_file: no such field"),
        (["dataset.train_data_sources=[{{dataset_dir: {folder}/yolo, split: ../x}}]"], "the name of a split"),
        ([], "dataset.train_data_sources or dataset.dataset_dir: required by"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(project, folders, overrides, expected, capsys):
    (project.folder / "results_of_nothing").mkdir()
    given = [text.format(folder=project.folder) for text in overrides]
    assert project.run("train", *given) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert expected in shown and "Traceback" not in shown
