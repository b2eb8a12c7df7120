"""YOLO labels with keypoints in the commands: the same results as with a COCO file of the same data."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import yaml

from rtdetr_tool.catalog import KEYPOINTS as KEYPOINTS_KIND
from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.cli import main
from rtdetr_tool.data.build import build_train_dataset
from rtdetr_tool.spec import DatasetSpec
from scripts.convert_dataset import as_boxes, write_format
from scripts.convert_dataset import main as convert
from scripts.make_keypoint_dataset import KEYPOINTS
from tests.commands.test_keypoints import Posing

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Drawn figures as a COCO and as a YOLO folder; in both, areas are those of the boxes."""
    posing = Posing(tmp_path_factory.mktemp("pose"))
    figures = [dict(row) for row in posing.coco["annotations"] if row["category_id"] == 1]
    figures[0] = {**figures[0], "keypoints": [0] * 18, "num_keypoints": 0}
    content = as_boxes({**posing.coco, "annotations": figures, "categories": posing.coco["categories"][:1]})
    for name in ("coco", "yolo"):
        write_format(name, posing.folder / name, dict.fromkeys(SPLITS, content),
                     dict.fromkeys(SPLITS, posing.folder / "train"))  # fmt: skip
    for key in ("train_data_sources", "val_data_sources", "test_data_sources", "num_classes"):
        del posing.spec["dataset"][key]
    return posing


def run(project, name: str, command: str, *overrides: str) -> None:
    assert project.run(command, "-r", str(project.folder / f"results_{name}"),
                       f"dataset.dataset_dir={project.folder / name}", *overrides) == 0  # fmt: skip


def read(project, name: str, file: str):
    return json.loads((project.folder / f"results_{name}" / file).read_text())


def test_training_targets_are_those_of_the_coco_file(project):
    datasets = []
    for name in ("coco", "yolo"):
        spec = DatasetSpec(dataset_dir=str(project.folder / name), num_classes=None, workers=0)
        spec = replace(spec, train_data_sources=[{"dataset_dir": spec.dataset_dir, "split": "train"}])
        datasets.append(build_train_dataset(spec, seed=1, kind=KEYPOINTS_KIND))
    assert datasets[0].class_map.poses[0].swaps == datasets[1].class_map.poses[0].swaps == (0, 1, 3, 2, 5, 4)
    for index in range(len(datasets[0])):
        (coco_image, coco), (yolo_image, yolo) = (dataset[0, index] for dataset in datasets)
        assert torch.equal(coco_image, yolo_image)
        torch.testing.assert_close(yolo.keypoints, coco.keypoints, rtol=0, atol=1e-6)
        torch.testing.assert_close(yolo.boxes, coco.boxes, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_training_and_scores_are_those_of_the_coco_file(project, caplog):
    states = {}
    for name in ("coco", "yolo"):
        run(project, name, "train")
        file = load_checkpoint(str(project.folder / f"results_{name}" / "train" / "rtdetr_model_best.pth"))
        assert file["rtdetr_tool"]["classes"][0]["keypoints"] == list(KEYPOINTS)
        states[name] = file["state_dict"]
    assert states["coco"].keys() == states["yolo"].keys()
    for key, tensor in states["coco"].items():
        torch.testing.assert_close(states["yolo"][key], tensor, rtol=1e-4, atol=1e-5)
    assert "keypoints ignored" not in caplog.text
    checkpoint = project.folder / "results_coco" / "train" / "rtdetr_model_best.pth"
    for name in ("coco", "yolo"):
        run(project, name, "evaluate", f"evaluate.checkpoint={checkpoint}", "evaluate.report=false")
    coco, yolo = (read(project, name, "evaluate/results.json") for name in ("coco", "yolo"))
    assert yolo["keypoints"] == coco["keypoints"] and yolo["mAP"] == coco["mAP"]
    points = [
        [row["keypoints"] for row in read(project, name, "evaluate/predictions.json")] for name in ("coco", "yolo")
    ]
    assert points[0] == points[1] and points[0]


def test_validate_data_counts_the_same_and_reports_a_malformed_line(project, capsys):
    for name in ("coco", "yolo"):
        run(project, name, "validate_data")
    coco, yolo = (read(project, name, "validate_data/report.json") for name in ("coco", "yolo"))
    assert yolo["splits"] == coco["splits"]
    label = next((project.folder / "yolo" / "train" / "labels").iterdir())
    text = label.read_text()
    try:
        label.write_text(text.rsplit(maxsplit=1)[0] + "\n")
        folder = project.folder / "yolo"
        assert project.run("validate_data", "-r", str(project.folder / "bad"), f"dataset.dataset_dir={folder}") != 0
        error = " ".join(capsys.readouterr().err.split())
        assert f"{label}, line {len(text.splitlines())}: 22 values; expected class index" in error
    finally:
        label.write_text(text)


def test_init_proposes_a_keypoint_model(project, tmp_path, capsys):
    assert main(["init", str(project.folder / "yolo"), "-o", str(tmp_path / "spec.yaml"), "-r", str(tmp_path)]) == 0
    spec = yaml.safe_load((tmp_path / "spec.yaml").read_text())
    assert spec["model"] == {"arch": "rfdetr", "rfdetr": {"variant": "keypoint_preview"}}
    labeled = sum(any(row["keypoints"]) for row in json.loads(
        (project.folder / "coco" / "annotations" / "instances_train.json").read_text())["annotations"])  # fmt: skip
    assert f"{labeled} of {labeled + 1} training objects have keypoints" in " ".join(capsys.readouterr().err.split())


def test_the_script_converts_a_drawn_keypoint_dataset(project, tmp_path):
    assert convert([str(project.folder), str(tmp_path / "yolo"), "--format", "yolo"]) == 0
    description = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())
    assert description["kpt_shape"] == [6, 3] and description["flip_idx"] == [0, 1, 3, 2, 5, 4]
    assert description["kpt_names"][1] == list(KEYPOINTS) and description["names"] == ["figure", "ball"]
