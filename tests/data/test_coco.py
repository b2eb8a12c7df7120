from __future__ import annotations

import json
import os

import numpy as np
import pytest

from rtdetr_tool.data.coco import read_source
from rtdetr_tool.data.ground_truth import coco_ground_truth
from rtdetr_tool.data.repairs import KINDS, Repairs
from rtdetr_tool.data.source import drop_missing_images
from rtdetr_tool.errors import DataError
from rtdetr_tool.ops.classes import ClassMap

from .conftest import coco, draw_image


def read(source):
    return read_source(source["image_dir"], source["json_file"])


def with_boxes(*boxes) -> dict:
    content = coco(1)
    content["annotations"] = [
        {"id": n, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": 0} for n, box in enumerate(boxes)
    ]
    return content


def boxes_of(source) -> list:
    return [list(row[:4]) for image in source.images.values() for row in image.rows]


def test_a_clean_file_is_read_without_repairs(make_source) -> None:
    source = read(make_source())
    assert not source.repairs and source.repairs.lines() == []
    assert source.categories == {1: "name1", 2: "name2"}
    records = source.records(ClassMap.from_categories(source.categories, 2))
    assert [record.image_id for record in records] == [1, 2, 3, 4]
    assert records[0].boxes.tolist() == [[4, 6, 24, 22], [14, 6, 34, 22]]
    assert records[0].labels.tolist() == [0, 1] and records[2].iscrowd.tolist() == [False, True]
    assert os.path.isfile(records[3].path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_every_encoding_of_unicode_is_read_with_and_without_a_byte_order_mark(make_source, encoding) -> None:
    content = coco(1)
    content["categories"][0]["name"] = "Hündchen 犬"
    source = make_source(content)
    with open(source["json_file"], "wb") as file:
        file.write(json.dumps(content, ensure_ascii=False).encode(encoding))
    assert read(source).categories == {1: "Hündchen 犬", 2: "name2"}


def test_text_of_another_encoding_is_an_error_that_says_how_to_convert_it(make_source) -> None:
    source = make_source()
    with open(source["json_file"], "wb") as file:
        file.write(json.dumps(coco() | {"info": "Hündchen"}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(DataError, match=r"set\.json is not valid UTF-8 \(.* at byte \d+\).*iconv -f latin1"):
        read(source)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(coco())[:-40], "not valid JSON or is truncated"),
        ("", "is empty"),
        ("\ufeff", "is empty"),
        ([], "contains a list; expected an object.*detection results"),
        ("3", "contains a number"),
        ("null", "contains null"),
        ({k: v for k, v in coco().items() if k != "images"}, "has no 'images'"),
        ({k: v for k, v in coco().items() if k != "annotations"}, "has no 'annotations'"),
        ({k: v for k, v in coco().items() if k != "categories"}, "has no 'categories'"),
        (coco() | {"images": {}}, "'images' in .* is an object; expected a list"),
        (coco() | {"images": [3]}, r"images\[0\] in .* is a number"),
        (coco() | {"categories": [{"name": "x"}]}, r"categories\[0\].id in .* is missing"),
        (coco() | {"categories": [{"id": 1, "name": "x"}, {"id": 1, "name": "y"}]}, "id 1 has two names.*'x' and 'y'"),
        (coco() | {"categories": [{"id": 1, "name": "x"}]}, r"not in 'categories': 2 \(4 annotations\)"),
        (coco() | {"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}, "has two files"),
        (coco() | {"images": [{"id": "one", "file_name": "a"}]}, "'one'; expected a 64-bit integer"),
        (coco() | {"images": [{"id": 1}]}, "no file_name"),
        (coco() | {"images": [{"id": 1, "file_name": "../secret.png"}]}, "relative to the image directory"),
        (coco() | {"images": [{"id": 1, "file_name": "a/../../secret.png"}]}, "relative to the image directory"),
        (coco() | {"images": [{"id": 1, "file_name": "..\\secret.png"}]}, "relative to the image directory"),
        (coco() | {"images": [{"id": 1, "file_name": "/etc/passwd"}]}, "relative to the image directory"),
        (coco() | {"images": [{"id": 1, "file_name": "h5://file:3"}]}, "frame of an HDF5 file"),
        (coco() | {"images": [{"id": 1, "file_name": "C:\\a.png"}]}, "relative to the image directory"),
        (coco() | {"images": [{"id": 1, "file_name": "."}]}, "relative to the image directory"),
        (coco() | {"images": [{"id": 1, "file_name": "a\0.png"}]}, "no file_name"),
        (coco() | {"images": [{"id": 1, "file_name": "\ud800.png"}]}, r"not valid text: '\\ud800"),
        (coco() | {"images": [{"id": 10**30, "file_name": "a"}]}, r"1000.*expected a 64-bit integer"),
        (coco() | {"images": [{"id": 1e300, "file_name": "a"}]}, "expected a 64-bit integer"),
        (coco() | {"images": [{"id": float("nan"), "file_name": "a"}]}, "nan; expected a 64-bit integer"),
        (coco() | {"images": [{"id": float("inf"), "file_name": "a"}]}, "inf; expected a 64-bit integer"),
        (coco() | {"images": [{"id": True, "file_name": "a"}]}, "True; expected a 64-bit integer"),
        (coco() | {"images": [{"id": "1_0", "file_name": "a"}]}, "'1_0'; expected a 64-bit integer"),
        (coco() | {"annotations": [None]}, r"annotations\[0\] in .* is null; expected an object"),
        (coco() | {"annotations": [{"id": 1, "category_id": 1}]}, r"annotations\[0\].image_id in .* is missing"),
        (coco() | {"annotations": [{"id": 1, "image_id": 1}]}, r"annotations\[0\].category_id in .* is missing"),
        ('{"images": [' + "9" * 5000 + "]}", "not valid JSON"),
        ('{"images": ' * 100_000, "not valid JSON|nested too deeply"),
    ],
)
def test_an_invalid_file_is_a_readable_error(make_source, content, message) -> None:
    source = make_source(content)
    with pytest.raises(DataError, match=message) as caught:
        read(source)
    assert source["json_file"] in str(caught.value)


def test_missing_file_and_missing_folder_are_named(make_source, tmp_path) -> None:
    source = make_source()
    with pytest.raises(DataError, match=r"Annotation file not found: .*nowhere\.json"):
        read_source(source["image_dir"], str(tmp_path / "nowhere.json"))
    with pytest.raises(DataError, match=r"image directory .*nowhere.* does not exist"):
        read_source(str(tmp_path / "nowhere"), source["json_file"])
    with pytest.raises(DataError, match="No annotation file matches"):
        read_source(source["image_dir"], str(tmp_path / "nowhere_*.json"))


def test_a_file_that_is_not_text_is_a_readable_error(make_source) -> None:
    source = make_source()
    with open(source["json_file"], "wb") as file:
        file.write(b"\x89PNG\xff\xfe\x00")
    with pytest.raises(DataError, match="not valid UTF-8"):
        read(source)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_pipe_or_a_folder_in_place_of_the_file_is_refused_without_waiting(make_source, tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "empty").mkdir()
    folder = (tmp_path / "empty", "no annotation file")
    for path, message in ((tmp_path / "pipe.json", "it is a pipe"), folder, ("a\0", "found")):
        with pytest.raises(DataError, match=message):
            read_source(make_source()["image_dir"], str(path))


def test_numbers_beyond_every_range_are_repaired_like_others(make_source) -> None:
    content = with_boxes([1e308, 1, 1e308, 5], [10**400, 1, 5, 5], [60, 1, 1e-30, 5], "1234", {"0": 1}, [True, 1, 1, 1])
    content["annotations"].append({"image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 10**400})
    content["images"][0] |= {"width": 10**400, "height": 48}
    source = read(make_source(content))
    assert dict(source.repairs.counts) == {
        "image_without_size": 1, "box_not_finite": 2, "box_empty": 1, "box_malformed": 3, "area_computed": 1,
        "iscrowd_assumed": 1,
    }  # fmt: skip
    assert source.images[1].rows == [(1, 1, 5, 5, 1, False, 16)] and source.images[1].width == 64


@pytest.mark.parametrize(
    ("iscrowd", "read_as", "counted"),
    [(0, False, 0), (1, True, 0), (True, True, 0), (None, False, 1), ("0", False, 1), (2, False, 1), ([1], False, 1)],
)
def test_only_one_and_true_make_a_crowd(make_source, iscrowd, read_as, counted) -> None:
    content = with_boxes([1, 1, 5, 5])
    content["annotations"][0] |= {"iscrowd": iscrowd, "area": 25}
    source = read(make_source(content))
    assert source.images[1].rows[0][5] is read_as and source.repairs.counts["iscrowd_assumed"] == counted


def test_file_names_may_have_all_valid_characters(make_source, tmp_path) -> None:
    names = ["Straße/犬 1.png", "10:30.png", " spaced .png", "a'b\"c#%.png", "..hidden..png", "./plain.png"]
    content = coco(len(names))
    for image, name in zip(content["images"], names, strict=True):
        image["file_name"] = name
        draw_image(tmp_path / "set" / name)
    source = read(make_source(content, draw=False))
    drop_missing_images(source, "error")
    assert not source.repairs and all(os.path.isfile(image.path) for image in source.images.values())


def test_bad_boxes_are_counted_and_dropped_or_clipped(make_source) -> None:
    nan, inf = float("nan"), float("inf")
    source = read(
        make_source(
            with_boxes(
                [1, 1, 10, 10],  # good
                [nan, 1, 5, 5],
                [1, 1, inf, 5],
                [1, 1, -5, 5],
                [1, 1, 0, 5],
                [1, 1, 5],
                None,
                ["a", 1, 2, 3],
                [70, 1, 5, 5],
                [-9, -9, 5, 5],
                [-5, -5, 15, 15],
                [50, 40, 100, 100],
                [44, 30, 20.3, 18.2],  # rounding by the annotation tool is not changed
            )
        )
    )
    assert dict(source.repairs.counts) == {
        "box_not_finite": 2, "box_empty": 2, "box_malformed": 3, "box_outside": 2, "box_clipped": 2, "area_computed": 4,
    }  # fmt: skip
    assert np.allclose(boxes_of(source), [[1, 1, 11, 11], [0, 0, 10, 10], [50, 40, 64, 48], [44, 30, 64.3, 48.2]])
    text = str(source.repairs)
    assert "2 boxes with zero or negative width or height: dropped (annotations[3], annotations[4])" in text
    assert "2 boxes that extended beyond their image: clipped" in text


def test_the_area_of_a_clipped_box_shrinks_with_it(make_source) -> None:
    content = with_boxes([-10, 0, 20, 10])
    content["annotations"][0]["area"] = 200.0
    source = read(make_source(content))
    assert source.images[1].rows[0][6] == 100.0


def test_area_from_the_segmentation_is_kept(make_source) -> None:
    content = with_boxes([0, 0, 20, 10])
    content["annotations"][0]["area"] = 37.5
    assert read(make_source(content)).images[1].rows[0][6] == 37.5


def test_ids_may_be_zero_text_or_repeated(make_source) -> None:
    content = coco(2)
    content["images"][0]["id"] = "1"
    content["annotations"][0] |= {"id": 0, "image_id": "1", "category_id": 1.0}
    content["annotations"][1] |= {"id": 0}
    content["images"].append(dict(content["images"][1]))
    source = read(make_source(content))
    assert source.repairs.counts == {"id_as_text": 2, "annotation_id_repeated": 1, "image_repeated": 1}
    assert [len(image.rows) for image in source.images.values()] == [2, 2]
    classes = ClassMap.from_categories(source.categories, 2)
    truth = coco_ground_truth(source.records(classes), classes)
    assert [annotation["id"] for annotation in truth["annotations"]] == [1, 2, 3, 4]


def test_annotations_of_unlisted_images_are_dropped_and_counted(make_source) -> None:
    content = coco(2)
    content["annotations"][0]["image_id"] = 77
    source = read(make_source(content))
    assert source.repairs.counts == {"annotation_of_unknown_image": 1}
    assert "annotations[0] of image 77" in str(source.repairs)


def test_sizes_missing_in_the_file_come_from_the_image(make_source) -> None:
    content = coco(1)
    del content["images"][0]["width"]
    source = read(make_source(content, images=1))
    assert (source.images[1].width, source.images[1].height) == (64, 48)
    assert source.repairs.counts["image_without_size"] == 1


def test_windows_separators_in_file_names_are_supported(make_source, tmp_path) -> None:
    content = coco(1)
    content["images"][0]["file_name"] = "sub\\0.png"
    source = make_source(content, draw=False)
    draw_image(tmp_path / "set" / "sub" / "0.png")
    assert os.path.isfile(read(source).images[1].path)


def test_missing_images_are_skipped_or_refused(make_source) -> None:
    source = make_source()
    os.remove(os.path.join(source["image_dir"], "2.png"))
    content = read(source)
    with pytest.raises(DataError, match=r"1 of 4 image files of .*set\.json do not exist: .*2\.png"):
        drop_missing_images(content, "error")
    drop_missing_images(content, "skip")
    assert list(content.images) == [1, 2, 4] and content.repairs.counts == {"image_missing": 1}


def test_a_folder_without_any_of_the_images_is_always_an_error(make_source) -> None:
    content = read(make_source(draw=False))
    with pytest.raises(DataError, match="4 of 4 image files"):
        drop_missing_images(content, "skip")


def test_a_pattern_reads_several_files_as_one(make_source, tmp_path) -> None:
    source = make_source(name="part")
    later = coco(1)
    later["images"][0] |= {"id": 9, "file_name": "3.png"}
    later["annotations"] = []
    (tmp_path / "part2.json").write_text(json.dumps(later))
    merged = read_source(source["image_dir"], str(tmp_path / "part*.json"))
    assert sorted(merged.images) == [1, 2, 3, 4, 9]


def test_ground_truth_keeps_ids_crowds_and_boxes(make_source) -> None:
    content = coco(3, ids=(5, 9))
    source = read(make_source(content))
    classes = ClassMap.from_categories(source.categories, 2)
    truth = coco_ground_truth(source.records(classes), classes)
    assert [a["category_id"] for a in truth["annotations"]] == [a["category_id"] for a in content["annotations"]]
    assert [a["bbox"] for a in truth["annotations"]] == [a["bbox"] for a in content["annotations"]]
    assert [a["iscrowd"] for a in truth["annotations"]] == [0, 0, 0, 0, 0, 1]
    assert truth["categories"] == [{"id": 5, "name": "name5"}, {"id": 9, "name": "name9"}]
    json.dumps(truth)


def test_repairs_add_up_over_files() -> None:
    one, two = Repairs(), Repairs()
    one.add("box_empty", "a")
    two.add("box_empty", "b")
    two.add("area_computed", "c")
    one.include(two)
    assert one.lines() == [f"2 {KINDS['box_empty']} (a, b)", f"1 {KINDS['area_computed']} (c)"]
