"""Folders with COCO files: COCO's own layout and Roboflow's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rtdetr_tool.data.build import build_eval_dataset, build_train_dataset
from rtdetr_tool.data.coco_folder import read_coco_split, read_roboflow_split
from rtdetr_tool.data.dataset_folder import read_dataset_folder
from rtdetr_tool.data.joining import decide_classes
from rtdetr_tool.errors import DataError
from rtdetr_tool.spec import spec_from_dict

from .conftest import coco, draw_image


def write(path: Path, content: dict, images: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    for image in content["images"]:
        draw_image(images / image["file_name"])


@pytest.mark.parametrize(("file", "images"), [("train2017", "train2017"), ("train2017", "images/train2017"),
                                              ("train", "train"), ("train", "images/train")])  # fmt: skip
def test_images_are_in_the_folder_named_like_the_file(tmp_path, file, images) -> None:
    write(tmp_path / "annotations" / f"instances_{file}.json", coco(2), tmp_path / images)
    write(tmp_path / "annotations" / "instances_val2017.json", coco(1), tmp_path / "val2017")
    source = read_coco_split(str(tmp_path), "train")
    assert [image.path for image in source.images.values()] == [str(tmp_path / images / f"{n}.png") for n in range(2)]


def test_a_split_of_coco_must_be_one_file_and_one_folder(tmp_path) -> None:
    write(tmp_path / "annotations" / "instances_train2014.json", coco(1), tmp_path / "other")
    with pytest.raises(DataError, match=r"instances_train2014\.json has no image folder; expected .*train2014"):
        read_coco_split(str(tmp_path), "train")
    write(tmp_path / "annotations" / "instances_train2017.json", coco(1), tmp_path / "train2017")
    with pytest.raises(DataError, match=r"several annotation files for the split 'train'.*Set image_dir and json_file"):
        read_coco_split(str(tmp_path), "train")
    with pytest.raises(DataError, match="no annotation file for the split 'val'"):
        read_coco_split(str(tmp_path), "val")


def roboflow(used: bool = False) -> dict:
    """Roboflow's export: category 0 groups the others; `used` gives it an object."""
    content = coco(2)
    content["categories"] = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "pets"},
        {"id": 2, "name": "dog", "supercategory": "pets"},
    ]
    if used:
        content["annotations"][0]["category_id"] = 0
    return content


def test_a_placeholder_category_is_skipped_and_counted(tmp_path) -> None:
    write(tmp_path / "valid" / "_annotations.coco.json", roboflow(), tmp_path / "valid")
    source = read_roboflow_split(str(tmp_path), "val")
    decide_classes([source], [])
    assert source.categories == {1: "cat", 2: "dog"} and source.repairs.counts == {"category_placeholder": 1}


def test_a_group_with_objects_in_another_split_is_a_class_everywhere(tmp_path) -> None:
    write(tmp_path / "train" / "_annotations.coco.json", roboflow(), tmp_path / "train")
    write(tmp_path / "valid" / "_annotations.coco.json", roboflow(used=True), tmp_path / "valid")
    spec = spec_from_dict({"dataset": {"dataset_dir": str(tmp_path)}}).dataset
    train = build_train_dataset(spec)
    assert train.class_map.names == ["pets", "cat", "dog"]
    val = build_eval_dataset(spec, "val", train.class_map)
    assert val.records[0].labels.tolist()[0] == 0
    assert build_eval_dataset(spec, "val").class_map.names == train.class_map.names


def test_a_group_that_has_objects_is_a_class(tmp_path) -> None:
    write(tmp_path / "train" / "_annotations.coco.json", roboflow(used=True), tmp_path / "train")
    source = read_roboflow_split(str(tmp_path), "train")
    decide_classes([source], [])
    assert source.categories == {0: "pets", 1: "cat", 2: "dog"}


def test_a_class_that_is_its_own_group_is_kept(tmp_path) -> None:
    content = coco(1)
    content["annotations"] = []
    content["categories"] = [{"id": 0, "name": "cat", "supercategory": "cat"}, {"id": 1, "name": "dog"}]
    write(tmp_path / "train" / "_annotations.coco.json", content, tmp_path / "train")
    source = read_roboflow_split(str(tmp_path), "train")
    decide_classes([source], [])
    assert source.categories == {0: "cat", 1: "dog"}


def test_the_folder_of_a_split_is_a_data_source_by_itself(tmp_path) -> None:
    write(tmp_path / "_annotations.coco.json", roboflow(), tmp_path)
    assert len(read_dataset_folder(str(tmp_path)).images) == 2
    with pytest.raises(DataError, match=r"has no train/_annotations\.coco\.json; it contains _annotations\.coco\.json"):
        read_dataset_folder(str(tmp_path), "train")
