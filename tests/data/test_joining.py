"""Classes by name: joined over sources, unique within a file, decided once over all splits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rtdetr_tool.class_names import unique_names
from rtdetr_tool.data.build import build_eval_dataset, build_train_dataset
from rtdetr_tool.data.coco import read_source
from rtdetr_tool.data.inspection import SplitCounts
from rtdetr_tool.data.repairs import Repairs
from rtdetr_tool.errors import DataError
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.spec import spec_from_dict

from .conftest import coco, draw_image


def named(categories: dict[int, str | None], images: int = 4) -> dict:
    """A COCO dict with these categories, each of which has objects."""
    content = coco(images, ids=tuple(categories))
    content["categories"] = [{"id": number, "name": name} for number, name in categories.items()]
    return content


def labels_of(dataset, folder: str) -> list[str]:
    """The names of all objects in the images of a folder."""
    return [
        dataset.class_map.name_of(label)
        for record in dataset.records
        if Path(record.path).parent.name == folder
        for label in record.labels.tolist()
    ]


def test_names_are_made_unique_and_what_is_done_is_counted() -> None:
    repairs = Repairs()
    result = unique_names({3: "nut", 2: "bolt", 1: "bolt", 4: "", 5: "4", 6: "bolt id 2"}, repairs.add)
    assert result == {3: "nut", 2: "bolt id 2 id 2", 1: "bolt", 4: "4 id 4", 5: "4", 6: "bolt id 2"}
    assert repairs.counts == {"category_name_repeated": 1, "category_unnamed": 1}
    assert unique_names(result) == result


def test_sources_with_other_ids_are_joined_by_name(make_source, make_spec, caplog) -> None:
    one = make_source(named({1: "bolt", 2: "nut"}), name="one")
    two = make_source(named({11: "nut", 12: "bolt", 13: "screw"}), name="two")
    dataset = build_train_dataset(make_spec(train_data_sources=[one, two], num_classes=None))
    assert dataset.class_map.categories == {1: "bolt", 2: "nut", 13: "screw"}
    assert labels_of(dataset, "one") == ["bolt", "nut", "nut", "bolt"] * 2
    assert labels_of(dataset, "two") == ["nut", "bolt", "bolt", "screw", "screw", "nut", "nut", "bolt"]
    assert dataset.repairs.counts["category_renumbered"] == 2 and "11 'nut' becomes 2" in caplog.text


def test_an_id_with_another_meaning_is_a_separate_class(make_source, make_spec, caplog) -> None:
    one = make_source(named({1: "bolt", 2: "nut"}), name="one")
    two = make_source(named({1: "screw", 2: "nut"}), name="two")
    spec = make_spec(train_data_sources=[one, two], num_classes=None)
    dataset = build_train_dataset(spec)
    assert dataset.class_map.categories == {1: "bolt", 2: "nut", 3: "screw"}
    assert labels_of(dataset, "two") == ["screw", "nut", "nut", "screw"] * 2
    assert "1 'screw' (there 'bolt') becomes 3" in caplog.text
    with pytest.raises(DataError, match="The dataset has 3 categories"):
        build_train_dataset(make_spec(train_data_sources=[one, two], num_classes=2))


def test_files_of_one_pattern_are_joined_by_name_too(make_source, tmp_path) -> None:
    source = make_source(named({1: "bolt", 2: "nut"}), name="part_a")
    other = named({1: "nut", 7: "bolt"})
    for entry in (*other["images"], *other["annotations"]):
        entry["image_id" if "bbox" in entry else "id"] += 100
    (tmp_path / "part_b.json").write_text(json.dumps(other))
    result = read_source(source["image_dir"], str(tmp_path / "part_*.json"))
    assert result.categories == {1: "bolt", 2: "nut"}
    assert [row[4] for row in result.images[101].rows] == [2, 1]


def test_two_categories_of_one_name_lose_no_object(make_source, make_spec, caplog) -> None:
    source = make_source(named({1: "bolt", 2: "bolt", 3: "nut", 4: None}), name="set")
    spec = make_spec(train_data_sources=[source], val_data_sources=source, num_classes=None)
    train = build_train_dataset(spec)
    assert train.class_map.names == ["bolt", "bolt id 2", "nut", "4"]
    counts = SplitCounts.of(train)
    by_name = {train.class_map.name_of(index): count for index, count in counts.by_class.items()}
    assert sum(by_name.values()) == counts.objects == 7 and len(by_name) == 4
    assert "id 2: 'bolt id 2'" in caplog.text and "1 categories without a name" in caplog.text
    val = build_eval_dataset(spec, "val", ClassMap.from_list(train.class_map.to_list()))
    assert [category["name"] for category in val.coco_ground_truth()["categories"]] == train.class_map.names


def test_a_list_of_classes_with_repeated_names_is_matched_by_the_same_rule(make_source, make_spec) -> None:
    stored = [{"index": k, "id": k + 1, "name": name} for k, name in enumerate(("bolt", "bolt", "nut"))]
    known = ClassMap.from_list(stored)
    assert len(set(known.names)) == 3


def test_a_test_file_may_list_a_class_that_is_not_trained_and_has_no_object(make_source, make_spec, caplog) -> None:
    known = ClassMap.from_categories({1: "bolt", 2: "nut"}, 2)
    content = named({1: "bolt", 2: "nut"})
    content["categories"].append({"id": 3, "name": "screw"})
    spec = make_spec(test_data_sources=make_source(content))
    dataset = build_eval_dataset(spec, "test", known)
    assert dataset.class_map.categories == {1: "bolt", 2: "nut"}
    assert dataset.repairs.counts == {"category_unused": 1} and "3 'screw'" in caplog.text
    content["annotations"][0]["category_id"] = 3
    with pytest.raises(DataError, match="has category 3 \\('screw'\\)"):
        build_eval_dataset(make_spec(test_data_sources=make_source(content, name="used")), "test", known)


def test_an_unused_class_does_not_hide_that_ids_differ(make_source, make_spec) -> None:
    known = ClassMap.from_categories({1: "nut", 2: "bolt"}, 2)
    content = named({1: "bolt", 2: "nut"})
    content["categories"].append({"id": 3, "name": "screw"})
    dataset = build_eval_dataset(make_spec(test_data_sources=make_source(content)), "test", known)
    assert labels_of(dataset, "set") == ["bolt", "nut", "nut", "bolt"] * 2


XML = """<annotation><filename>{stem}.png</filename><size><width>64</width><height>48</height></size>
<object><name>{name}</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>30</xmax><ymax>30</ymax></bndbox></object></annotation>"""


def test_classes_of_voc_are_those_of_the_objects_of_all_splits(tmp_path) -> None:
    for split, name in (("train", "dog"), ("valid", "cat")):
        draw_image(tmp_path / split / "a.png")
        (tmp_path / split / "a.xml").write_text(XML.format(stem="a", name=name))
    spec = spec_from_dict({"dataset": {"dataset_dir": str(tmp_path)}}).dataset
    train = build_train_dataset(spec)
    assert train.class_map.names == ["cat", "dog"] and train.records[0].labels.tolist() == [1]
    val = build_eval_dataset(spec, "val", train.class_map)
    assert val.records[0].labels.tolist() == [0]
    assert build_eval_dataset(spec, "val").class_map.names == ["cat", "dog"]


def test_repeated_and_missing_names_of_yolo_are_treated_alike(tmp_path) -> None:
    draw_image(tmp_path / "images" / "train" / "a.png")
    (tmp_path / "labels" / "train").mkdir(parents=True)
    lines = [f"{index} 0.5 0.5 0.2 0.2\n" for index in range(3)]
    (tmp_path / "labels" / "train" / "a.txt").write_text("".join(lines))
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [bolt, bolt, '']\n")
    train = build_train_dataset(spec_from_dict({"dataset": {"dataset_dir": str(tmp_path)}}).dataset)
    assert train.class_map.names == ["bolt", "bolt id 1", "2"] and train.records[0].labels.tolist() == [0, 1, 2]
    assert train.repairs.counts == {"category_name_repeated": 1, "category_unnamed": 1}


def write_coco(folder: Path, names: list[str]) -> dict:
    content = named(dict(enumerate(names, 1)))
    for number in range(4):
        draw_image(folder / "train" / f"{number}.png")
    (folder / "train" / "_annotations.coco.json").write_text(json.dumps(content))
    return {"dataset_dir": str(folder)}


def write_coco_files(folder: Path, names: list[str]) -> dict:
    """One source per name."""
    sources = []
    for number, name in enumerate(names):
        for image in range(4):
            draw_image(folder / str(number) / f"{image}.png")
        (folder / f"{number}.json").write_text(json.dumps(named({number + 1: name})))
        sources.append({"image_dir": str(folder / str(number)), "json_file": str(folder / f"{number}.json")})
    return {"train_data_sources": sources}


def write_yolo(folder: Path, names: list[str]) -> dict:
    draw_image(folder / "images" / "train" / "a.png")
    (folder / "labels" / "train").mkdir(parents=True)
    lines = [f"{index} 0.5 0.5 0.2 0.2\n" for index in range(len(names))]
    (folder / "labels" / "train" / "a.txt").write_text("".join(lines))
    (folder / "data.yaml").write_text(f"train: images/train\nnames: {json.dumps(names)}\n")
    return {"dataset_dir": str(folder)}


def write_voc(folder: Path, names: list[str]) -> dict:
    for number, name in enumerate(names):
        draw_image(folder / "train" / f"{number}.png")
        (folder / "train" / f"{number}.xml").write_text(XML.format(stem=number, name=name))
    return {"dataset_dir": str(folder)}


@pytest.mark.parametrize("names", [["Car", "car", "bus"], ["traffic light", "traffic_light", "bus"]], ids=str)
@pytest.mark.parametrize("write", [write_coco, write_coco_files, write_yolo, write_voc])
def test_names_that_differ_only_in_spelling_stay_separate_with_one_warning(write, names, tmp_path, caplog) -> None:
    spec = spec_from_dict({"dataset": write(tmp_path, names)}).dataset
    train = build_train_dataset(spec)
    assert sorted(filter(None, train.class_map.names)) == sorted(names)
    assert {label for record in train.records for label in record.labels.tolist()} == {
        entry.index for entry in train.class_map.entries
    }
    assert train.repairs.counts["category_confusable"] == 1
    (message,) = [record.message for record in caplog.records if "differ only in case" in record.message]
    assert all(repr(name) in message for name in names[:2]) and "'bus'" not in message
    assert "kept as separate classes" in message and "same name in the annotations" in message
    assert str(tmp_path) in message


def test_an_evaluated_split_warns_only_if_its_own_classes_are_used(make_source, make_spec) -> None:
    spec = make_spec(val_data_sources=make_source(named({1: "Car", 2: "car"})), num_classes=3)
    val = build_eval_dataset(spec)
    assert val.repairs.counts == {"category_confusable": 1}
    assert not build_eval_dataset(spec, "val", val.class_map).repairs


def test_an_unknown_class_in_another_spelling_is_named_in_the_error(tmp_path) -> None:
    known = ClassMap.from_categories({1: "Car", 2: "bus"}, 3)
    spec = spec_from_dict({"dataset": write_yolo(tmp_path, ["car", "bus"])}).dataset
    with pytest.raises(DataError, match=r"'car' \('car' is 'Car' there\)"):
        build_eval_dataset(spec, "train", known)
