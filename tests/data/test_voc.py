"""Pascal VOC datasets: layouts, boxes, difficult objects, and the message for each mistake."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rtdetr_tool.data.source import drop_missing_images
from rtdetr_tool.data.voc import read_split
from rtdetr_tool.errors import DataError

from .conftest import converter, draw_image

voc_object, voc_xml = converter.voc_object, converter.voc_xml

CAT, DOG = voc_object("cat", [8, 6, 20, 16]), voc_object("dog", [0, 0, 64, 48])


def write_image(folder: Path, name: str, *objects: str, labels: Path | None = None, **changes) -> None:
    draw_image(folder / f"{name}.png")
    labels = labels or folder
    labels.mkdir(parents=True, exist_ok=True)
    xml = voc_xml(f"{name}.png", changes.get("width", 64), changes.get("height", 48), list(objects))
    (labels / f"{name}.xml").write_text(xml)


@pytest.fixture
def flat(tmp_path) -> Path:
    """One image with its XML file next to it."""
    write_image(tmp_path / "flat", "0", CAT)
    return tmp_path / "flat"


def edit(folder: Path, old: str, new: str, name: str = "0") -> str:
    path = folder / f"{name}.xml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return str(folder)


def rows(source) -> list[list[tuple]]:
    return [image.rows for image in source.images.values()]


def test_pixels_count_from_one_and_both_ends_belong_to_the_box(flat) -> None:
    folder = edit(flat, "</annotation>", DOG + "</annotation>")
    text = (flat / "0.xml").read_text()
    assert "<xmin>9</xmin><ymin>7</ymin><xmax>28</xmax><ymax>22</ymax>" in text
    assert "<xmin>1</xmin><ymin>1</ymin><xmax>64</xmax><ymax>48</ymax>" in text
    source = read_split(folder, "")
    assert rows(source) == [[(8, 6, 28, 22, 0, False, 320), (0, 0, 64, 48, 1, False, 3072)]]
    assert not source.repairs


def test_classes_are_the_sorted_names_of_the_objects(tmp_path) -> None:
    write_image(tmp_path, "a", voc_object("zebra", [0, 0, 9, 9]), CAT)
    write_image(tmp_path, "b", DOG, voc_object("emu", [0, 0, 0, 0]))  # an emu without a usable box is still a class
    assert read_split(str(tmp_path), "").categories == {0: "cat", 1: "dog", 2: "emu", 3: "zebra"}


def test_a_list_of_classes_gives_their_order(tmp_path) -> None:
    write_image(tmp_path / "train", "a", CAT)
    (tmp_path / "labels.txt").write_text("dog\ncat\n\n")
    source = read_split(str(tmp_path), "train")
    assert source.categories == {0: "dog", 1: "cat"} and rows(source)[0][0][4] == 1
    (tmp_path / "labels.txt").write_text("dog\n")
    with pytest.raises(DataError, match=r"a\.xml, object 1 has the class 'cat', which is not in .*labels\.txt"):
        read_split(str(tmp_path), "train")
    (tmp_path / "labels.txt").write_text("dog\ndog\ncat\n")
    source = read_split(str(tmp_path), "train")
    assert source.categories == {0: "dog", 1: "cat"} and source.repairs.counts["category_repeated"] == 1
    (tmp_path / "labels.txt").write_text("\n")
    with pytest.raises(DataError, match="one class name per line"):
        read_split(str(tmp_path), "train")


def test_difficult_objects_are_crowd_regions_and_are_counted(flat) -> None:
    source = read_split(edit(flat, "<difficult>0", "<difficult>1"), "")
    assert rows(source) == [[(8, 6, 28, 22, 0, True, 320)]] and source.repairs.counts == {"object_difficult": 1}


@pytest.mark.parametrize("layout", ["flat", "two folders", "image sets"])
def test_splits_are_lists_or_folders(tmp_path, layout) -> None:
    for split, name in (("train", "a"), ("valid", "b")):
        if layout == "flat":
            write_image(tmp_path / split, name, CAT)
        elif layout == "two folders":
            write_image(tmp_path / split / "images", name, CAT, labels=tmp_path / split / "annotations")
        else:
            write_image(tmp_path / "JPEGImages", name, CAT, labels=tmp_path / "Annotations")
            (tmp_path / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
            (tmp_path / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{name} 1\n")
    for split, name in (("train", "a"), ("val", "b"), ("valid", "b")):
        assert [Path(image.path).name for image in read_split(str(tmp_path), split).images.values()] == [f"{name}.png"]
    with pytest.raises(DataError, match=r"no split 'test'; expected ImageSets.Main.test\.txt or a folder test"):
        read_split(str(tmp_path), "test")


def test_trainval_of_the_challenge_is_a_split_like_others(tmp_path) -> None:
    for name in ("a", "b c"):
        write_image(tmp_path / "JPEGImages", name, CAT, labels=tmp_path / "Annotations")
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "trainval.txt").write_text("b c\na  -1\n")
    source = read_split(str(tmp_path), "trainval")
    assert [Path(image.path).stem for image in source.images.values()] == ["b c", "a"]
    assert len(read_split(str(tmp_path), "").images) == 2  # the whole folder, without a list


def test_sizes_come_from_the_file_where_the_xml_has_none(flat) -> None:
    source = read_split(edit(flat, "<width>64</width>", "<width>0</width>"), "")
    assert [(image.width, image.height) for image in source.images.values()] == [(64, 48)]
    assert source.repairs.counts == {"image_without_size": 1}


def test_boxes_are_repaired_as_those_of_coco_files_are(flat) -> None:
    boxes = ([-9, 0, 20, 20], [99, 0, 9, 9], [5, 5, 0, 5])
    source = read_split(edit(flat, "</annotation>", "".join(voc_object("cat", b) for b in boxes) + "</annotation>"), "")
    assert [row[:4] for row in rows(source)[0]] == [(8, 6, 28, 22), (0, 0, 11, 20)]
    assert source.repairs.counts == {"box_clipped": 1, "box_outside": 1, "box_empty": 1}


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("<xmin>9</xmin>", "", "box_malformed"),
        ("<xmin>9</xmin>", "<xmin>nine</xmin>", "box_malformed"),
        ("<xmin>9</xmin>", "<xmin>inf</xmin>", "box_not_finite"),
        ("<bndbox>", "<polygon/><other>", "box_malformed"),
    ],
)
def test_a_box_without_four_numbers_is_dropped_and_counted(flat, old, new, kind) -> None:
    edit(flat, old, new)
    if "other" in new:
        edit(flat, "</bndbox>", "</other>")
    source = read_split(str(flat), "")
    assert rows(source) == [[]] and source.repairs.counts == {kind: 1} and source.categories == {0: "cat"}


def test_an_image_without_xml_is_one_without_objects(flat) -> None:
    draw_image(flat / "1.png")
    source = read_split(str(flat), "")
    assert [len(result) for result in rows(source)] == [1, 0]
    assert source.repairs.counts == {"image_without_label": 1}
    (flat / "0.xml").unlink()
    with pytest.raises(DataError, match=r"None of the 2 images .* has an XML file"):
        read_split(str(flat), "")


def test_an_xml_without_an_image_is_a_missing_image(flat) -> None:
    edit(flat, "<filename>0.png", r"<filename>C:\images\0.png")
    draw_image(flat / "1.png")
    (flat / "0.png").unlink()
    source = read_split(str(flat), "")
    with pytest.raises(DataError, match=r"1 of 2 image files .* do not exist: .*flat/0\.png"):
        drop_missing_images(source, "error")


def test_the_image_may_be_named_in_the_xml_only(flat) -> None:
    (flat / "0.png").rename(flat / "image.png")
    edit(flat, "<filename>0.png", "<filename>image.png")
    source = read_split(str(flat), "")
    assert {Path(i.path).name: len(i.rows) for i in source.images.values()} == {"image.png": 1}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<name>cat</name>", "", r"0\.xml, object 1 has no <name>"),
        ("</annotation>", "", r"0\.xml is not a valid Pascal VOC annotation: no element found"),
        ("annotation>", "html>", "expected the root element <annotation>"),
        ("<annotation>", '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>', "document type"),
        (
            "<annotation>",
            '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><annotation><folder>&b;</folder>',
            "document type",
        ),
        ("<annotation>", '<?xml version="1.0" encoding="klingon"?><annotation>', "not a valid Pascal VOC annotation"),
        ("<annotation>", "<annotation>&x;", "undefined entity"),
    ],
)
def test_an_invalid_xml_is_one_message(flat, old, new, message) -> None:
    with pytest.raises(DataError, match=message):
        read_split(edit(flat, old, new), "")


def test_a_list_must_not_point_outside_the_dataset(tmp_path) -> None:
    write_image(tmp_path / "JPEGImages", "a", CAT, labels=tmp_path / "Annotations")
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    for text, message in (("../../a\n", "without folder and extension"), ("\n", "is empty")):
        (tmp_path / "ImageSets" / "Main" / "train.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            read_split(str(tmp_path), "train")


def test_images_without_any_object_need_a_list_of_classes(flat) -> None:
    (flat / "0.xml").write_text(voc_xml("0.png", 64, 48, []))
    with pytest.raises(DataError, match=r"has no objects, so its classes are unknown. List them in .*labels\.txt"):
        read_split(str(flat), "")
    (flat / "labels.txt").write_text("cat\n")
    assert rows(read_split(str(flat), "")) == [[]]


def test_readers_do_not_wait_for_files_that_never_end(flat) -> None:
    (flat / "0.xml").unlink()
    os.mkfifo(flat / "0.xml")
    with pytest.raises(DataError, match=r"0\.xml cannot be read: .*pipe"):
        read_split(str(flat), "")
