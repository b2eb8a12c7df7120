"""`rtdetr init` writes a spec that `train` accepts, with values that follow from the dataset."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from rtdetr_tool.cli import main
from rtdetr_tool.spec import read_spec
from scripts.make_keypoint_dataset import write_split

SIDE = 512


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """The proposals for a machine without a GPU, on any machine."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.fixture
def make_dataset(tmp_path):
    """`make_dataset(boxes, splits)`: a COCO folder whose images (512 x 256) have the given boxes (xywh)."""

    def make(boxes, splits=("train", "val")):
        for split in splits:
            (tmp_path / "data" / split).mkdir(parents=True)
            images = [{"id": n, "file_name": f"{n}.png", "width": SIDE, "height": SIDE // 2} for n in (1, 2)]
            for image in images:
                pixels = np.full((SIDE // 2, SIDE, 3), image["id"] * 20, dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / image["file_name"])
            annotations = [
                {
                    "id": n,
                    "image_id": 1,
                    "category_id": 1 + n % 2,
                    "bbox": list(box),
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
                for n, box in enumerate(boxes)
            ]
            categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
            (tmp_path / "data" / "annotations").mkdir(exist_ok=True)
            (tmp_path / "data" / "annotations" / f"instances_{split}.json").write_text(
                json.dumps({"images": images, "annotations": annotations, "categories": categories})
            )
        return tmp_path / "data"

    return make


def written(tmp_path, *arguments: str) -> dict:
    assert main(["init", *arguments, "-o", str(tmp_path / "spec.yaml"), "-r", str(tmp_path / "results")]) == 0
    return yaml.safe_load((tmp_path / "spec.yaml").read_text())


def test_the_spec_trains_as_it_is(make_dataset, tmp_path, capsys):
    data = make_dataset([(10, 10, 100, 100), (200, 10, 120, 120)])
    spec = written(tmp_path, str(data))
    size = spec["dataset"]["augmentation"]["eval_spatial_size"]
    assert size == [448, 448] and spec["model"]["backbone"] == "resnet_18"
    loaded = read_spec(str(tmp_path / "spec.yaml"), [], "train")
    assert loaded.spec.dataset.dataset_dir == str(data) and loaded.spec.train.num_epochs == 100
    assert read_spec(str(tmp_path / "spec.yaml"), [], "evaluate").spec.evaluate.batch_size == 8
    tiny = ["model.backbone=timm/test_resnet", "model.pretrained_backbone_path=null", "dataset.workers=0",
            "dataset.batch_size=2", "train.accelerator=cpu", "model.hidden_dim=32", "model.nheads=2",
            "model.dim_feedforward=32", "model.feat_channels=[32,32,32]", "model.dec_layers=1", "train.is_dry_run=true",
            "dataset.augmentation.train_spatial_size=[64,64]", "dataset.augmentation.eval_spatial_size=[64,64]",
            "dataset.augmentation.multi_scales=[]", "wandb.enable=false"]  # fmt: skip
    assert main(["train", "-e", str(tmp_path / "spec.yaml"), *tiny]) == 0
    assert capsys.readouterr().err.count("Running on the CPU") == 1


def test_a_dataset_with_keypoints_gets_a_keypoint_model(tmp_path, capsys):
    for split in ("train", "val"):
        write_split(tmp_path / "data", split, 4, 64, seed=1)
    spec = written(tmp_path, str(tmp_path / "data"))
    assert spec["model"] == {"arch": "rfdetr", "rfdetr": {"variant": "keypoint_preview"}}
    assert "augmentation" not in spec["dataset"]
    content = json.loads((tmp_path / "data" / "annotations" / "person_keypoints_train.json").read_text())
    figures = [a for a in content["annotations"] if a.get("num_keypoints")]
    said = " ".join(capsys.readouterr().err.split())
    assert f"{len(figures)} of {len(content['annotations'])} training objects have keypoints" in said
    loaded = read_spec(str(tmp_path / "spec.yaml"), [], "train").spec
    assert loaded.model.predicts == "keypoints" and loaded.dataset.augmentation.eval_spatial_size == [576, 576]
    tiny = ["model.rfdetr.resolution=48", "model.rfdetr.out_feature_indexes=[1,2]", "model.rfdetr.hidden_dim=16",
            "model.rfdetr.sa_nheads=2", "model.rfdetr.ca_nheads=2", "model.rfdetr.dec_layers=2", "model.num_select=8",
            "model.rfdetr.num_queries=8", "model.rfdetr.group_detr=2", "train.pretrained_model_path=null",
            "dataset.batch_size=2", "dataset.workers=0", "train.accelerator=cpu", "train.is_dry_run=true",
            "train.precision=fp32"]  # fmt: skip
    assert main(["train", "-e", str(tmp_path / "spec.yaml"), *tiny]) == 0


def test_a_keypoint_file_without_keypoints_gets_a_model_of_boxes(make_dataset, tmp_path):
    data = make_dataset([(10, 10, 100, 100)])
    for path in (data / "annotations").iterdir():
        path.rename(path.with_name(path.name.replace("instances", "person_keypoints")))
    assert "arch" not in written(tmp_path, str(data))["model"]


def test_small_objects_ask_for_a_larger_input(make_dataset, tmp_path):
    few = written(tmp_path, str(make_dataset([(n * 12, 10, 4, 4) for n in range(20)])))
    size = few["dataset"]["augmentation"]["train_spatial_size"][0]
    assert size == 512  # no more than the images have
    assert "a tenth of the objects would be below 8 px at 448 px" in (tmp_path / "spec.yaml").read_text()


def test_many_objects_raise_queries_and_the_limit_of_detections(make_dataset, tmp_path):
    boxes = [(n % 50 * 10, n // 50 * 20, 9, 9) for n in range(500)]
    spec = written(tmp_path, str(make_dataset(boxes)))
    assert spec["model"]["num_queries"] == spec["model"]["num_select"] == 800
    assert spec["evaluate"]["max_dets"] == 300  # 250 of a class
    assert "an image has 500 objects" in (tmp_path / "spec.yaml").read_text()


def test_a_dataset_without_validation_images_ends_in_one_message(make_dataset, tmp_path, capsys):
    data = make_dataset([(10, 10, 100, 100)], splits=("train",))
    assert main(["init", str(data), "-o", str(tmp_path / "spec.yaml")]) == 2
    text = capsys.readouterr().err
    assert "validation split" in text and not (tmp_path / "spec.yaml").exists()


def test_an_existing_file_is_kept_without_force(make_dataset, tmp_path, capsys):
    data = make_dataset([(10, 10, 100, 100)])
    (tmp_path / "spec.yaml").write_text("mine")
    assert main(["init", str(data), "-o", str(tmp_path / "spec.yaml")]) == 2
    assert "--force" in capsys.readouterr().err and (tmp_path / "spec.yaml").read_text() == "mine"
    assert written(tmp_path, str(data), "--force")["results_dir"] == str(tmp_path / "results")


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_a_dataset_ends_in_one_message(tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    assert main(["init", str(tmp_path / name), "-o", str(tmp_path / "spec.yaml")]) == 2
    assert "Expected one of" in capsys.readouterr().err or name == "missing"
    assert not (tmp_path / "spec.yaml").exists()
