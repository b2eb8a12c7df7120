"""The same data in every format: the same records, the same ground truth, the same score."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rtdetr_tool.data.build import build_eval_dataset, build_train_dataset
from rtdetr_tool.data.build_sources import source_images
from rtdetr_tool.errors import DataError
from rtdetr_tool.metrics.coco import CocoEvaluator
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.structures import Detections
from rtdetr_tool.spec import spec_from_dict

from .conftest import coco, converter, draw_image

FORMATS, as_boxes, write_format = converter.FORMATS, converter.as_boxes, converter.write_format

SPLITS = {"train": 7, "val": 5}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> tuple[dict[str, dict], dict[str, Path]]:
    """COCO dicts and image folders of two splits; one image has no objects, and odd sizes give odd fractions."""
    root = tmp_path_factory.mktemp("drawn")
    contents = {}
    for split, count in SPLITS.items():
        content = coco(count, width=67, height=47, ids=(1, 2, 3))
        for image in content["images"]:
            image["file_name"] = f"{split}{image['file_name']}"
            draw_image(root / split / image["file_name"], 67, 47)
        kept = [{**a, "iscrowd": 0} for a in content["annotations"] if a["image_id"] != 2]
        contents[split] = as_boxes({**content, "annotations": kept})
    return contents, {split: root / split for split in SPLITS}


@pytest.fixture(scope="module")
def written(drawn, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("written")
    return {name: write_format(name, root / name, *drawn) for name in FORMATS}


def dataset_spec(**fields):
    sizes = {"train_spatial_size": [64, 96], "eval_spatial_size": [64, 96]}
    return spec_from_dict({"dataset": {"workers": 0, "batch_size": 2, "augmentation": sizes, **fields}}).dataset


def columns(dataset) -> list[tuple]:
    """The records by file name."""
    rows = [
        (Path(r.path).name, r.width, r.height, np.round(r.boxes, 9).tolist(), r.labels.tolist(), r.iscrowd.tolist(),
         np.round(r.area, 9).tolist())
        for r in dataset.records
    ]  # fmt: skip
    return sorted(rows, key=lambda row: row[0])


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_gives_the_records_of_the_coco_files_in_it_whatever_its_format(name, drawn, written) -> None:
    contents, images = drawn
    labels = {split: images[split].parent / f"{split}.json" for split in SPLITS}
    for split, path in labels.items():
        path.write_text(json.dumps(contents[split]))
    sources = {split: {"image_dir": str(images[split]), "json_file": str(labels[split])} for split in SPLITS}
    known = dataset_spec(train_data_sources=[sources["train"]], val_data_sources=sources["val"], num_classes=3)
    result = dataset_spec(dataset_dir=str(written[name]))
    ours, reference = build_train_dataset(result), build_train_dataset(known)
    assert columns(ours) == columns(reference) and len(ours) == 7
    assert ours.class_map.names == ["name1", "name2", "name3"]
    ours, reference = (build_eval_dataset(spec, "val") for spec in (result, known))
    assert columns(ours) == columns(reference) and len(ours) == 5


@pytest.mark.parametrize("name", FORMATS)
def test_predictions_of_one_checkpoint_score_the_same_in_every_format(name, drawn, written) -> None:
    classes = ClassMap.from_categories({1: "name1", 2: "name2", 3: "name3"}, 3)  # as trained from COCO files
    scores = {}
    for other in ("coco", name):
        dataset = build_eval_dataset(dataset_spec(dataset_dir=str(written[other])), "val", classes)
        assert dataset.class_map.names == classes.names
        evaluator = CocoEvaluator(dataset.coco_ground_truth(), dataset.class_map)
        for record in dataset.records:
            number = int(Path(record.path).stem.removeprefix("val"))
            rng = np.random.default_rng(number)
            boxes = np.array([[4.0, 6, 24, 22], [14, 6, 34, 22], [0, 0, 60, 40]]) + rng.normal(0, 2, (3, 4))
            labels = torch.tensor([number % 3, (number + 1) % 3, 0])
            result = Detections(torch.tensor(boxes), torch.tensor([0.9, 0.8, 0.3]), labels)
            evaluator.update([record.image_id], [result])
        scores[other] = evaluator.compute().stats
    assert scores[name] == pytest.approx(scores["coco"], abs=1e-12)
    assert 0.2 < scores[name]["AP"] < 1


@pytest.mark.parametrize("trained", FORMATS)
@pytest.mark.parametrize("scored", FORMATS)
def test_classes_meet_by_name_where_formats_number_them_differently(trained, scored, written) -> None:
    training = build_train_dataset(dataset_spec(dataset_dir=str(written[trained])))
    stored = ClassMap.from_list(training.class_map.to_list(), training.class_map.num_classes)
    spec = dataset_spec(val_data_sources={"dataset_dir": str(written[scored]), "split": "val"})
    dataset = build_eval_dataset(spec, "val", stored)
    by_name = {entry.name: entry.index for entry in dataset.class_map.entries}
    assert by_name == {"name1": 0, "name2": 1, "name3": 2}
    truth = dataset.coco_ground_truth()
    name_of = {category["id"]: category["name"] for category in truth["categories"]}
    assert {dataset.class_map.index_of(i): name for i, name in name_of.items()} == {v: k for k, v in by_name.items()}
    alone = build_eval_dataset(spec, "val")
    assert columns(dataset) == columns(alone)


def test_sources_of_several_formats_are_joined_by_the_names_of_their_classes(written) -> None:
    sources = [{"dataset_dir": str(written[name]), "split": "train"} for name in FORMATS]
    dataset = build_train_dataset(dataset_spec(train_data_sources=sources))
    assert len(dataset) == 28 and dataset.class_map.names == ["name1", "name2", "name3"]
    rows = [(Path(record.path).name, *record.labels.tolist()) for record in dataset.records]
    labels = [sorted(rows[first : first + 7]) for first in (0, 7, 14, 21)]
    assert labels[0] == labels[1] == labels[2] == labels[3]


def test_an_unknown_class_is_named_with_the_known_ones(written) -> None:
    known = ClassMap.from_categories({0: "name1", 1: "name2"}, 2)
    for name in ("yolo", "voc"):
        with pytest.raises(DataError, match=r"'name3'.*'name1', 'name2'"):
            build_eval_dataset(dataset_spec(dataset_dir=str(written[name])), "val", known)


def test_the_number_of_classes_is_that_of_the_dataset_unless_set(written) -> None:
    spec = dataset_spec(dataset_dir=str(written["yolo"]))
    assert spec.num_classes is None and build_train_dataset(spec).class_map.num_classes == 3
    given = replace(spec, num_classes=5)
    assert build_train_dataset(given).class_map.num_classes == 5
    with pytest.raises(DataError, match=r"The dataset has 3 categories .* dataset.num_classes is 2"):
        build_train_dataset(replace(spec, num_classes=2))


def test_images_for_export_are_those_of_the_split(written) -> None:
    for name in FORMATS:
        paths = source_images(dataset_spec(dataset_dir=str(written[name])), "val")
        assert sorted(Path(path).name for path in paths) == [f"val{n}.png" for n in range(5)]


@pytest.mark.parametrize("name", FORMATS)
def test_the_format_is_logged(name, written, caplog) -> None:
    with caplog.at_level("INFO"):
        build_eval_dataset(dataset_spec(dataset_dir=str(written[name])), "val")
    shown = {"coco": "COCO", "roboflow": "Roboflow COCO", "yolo": "YOLO", "voc": "Pascal VOC"}[name]
    assert f"as {shown} (it has" in caplog.text


def test_a_folder_of_two_formats_is_refused_until_one_is_named(drawn, tmp_path) -> None:
    both = write_format("yolo", tmp_path / "both", *drawn)
    for path in write_format("roboflow", tmp_path / "roboflow", *drawn).iterdir():
        if not (both / path.name).exists():
            path.rename(both / path.name)
    with pytest.raises(DataError, match=r"2 formats: Roboflow COCO \(valid.*YOLO \(data.yaml\).*dataset.format"):
        build_eval_dataset(dataset_spec(dataset_dir=str(both)), "val")
    assert len(build_eval_dataset(dataset_spec(dataset_dir=str(both), format="yolo"), "val")) == 5


def test_a_folder_of_no_format_is_refused_with_what_was_looked_for(tmp_path) -> None:
    draw_image(tmp_path / "photos" / "a.png")
    with pytest.raises(DataError) as caught:
        build_train_dataset(dataset_spec(dataset_dir=str(tmp_path)))
    for expected in (
        "It contains photos",
        "data.yaml",
        "_annotations.coco.json",
        "instances_train",
        "Annotations/*.xml",
    ):
        assert expected in str(caught.value)
    with pytest.raises(DataError, match="does not exist"):
        build_train_dataset(dataset_spec(dataset_dir=str(tmp_path / "nowhere")))


def test_a_folder_of_another_format_than_named_is_refused(written) -> None:
    with pytest.raises(DataError, match=r"dataset.format is voc, but .*It looks like YOLO"):
        build_train_dataset(dataset_spec(dataset_dir=str(written["yolo"]), format="voc"))


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_split_is_named(name, written) -> None:
    with pytest.raises(DataError, match="test"):
        build_eval_dataset(dataset_spec(dataset_dir=str(written[name])), "test")


@pytest.mark.parametrize("name", ["coco", "yolo"])
def test_formats_that_describe_all_splits_in_one_place_need_the_name_of_one(name, written) -> None:
    with pytest.raises(DataError, match="set `split`"):
        build_eval_dataset(dataset_spec(val_data_sources={"dataset_dir": str(written[name])}), "val")
