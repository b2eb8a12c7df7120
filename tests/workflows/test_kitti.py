"""KITTI lines and the names of output files."""

from __future__ import annotations

import os
from pathlib import PurePosixPath

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.structures import Detections
from rtdetr_tool.workflows.kitti import kitti_lines, kitti_names, output_stems


def detections(boxes, scores, labels) -> Detections:
    return Detections(torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels, dtype=torch.int64))


def test_a_kitti_line_has_sixteen_fields_with_three_decimals_for_box_and_score():
    actual = detections([[1.0, 2.5, 30.12345, 400.9996]], [0.87654], [1])
    expected = "car 0.00 0 0.00 1.000 2.500 30.123 401.000 0.00 0.00 0.00 0.00 0.00 0.00 0.00 0.877"
    assert kitti_lines(actual, ["bus", "car"].__getitem__) == [expected]
    assert len(expected.split()) == 16


@pytest.mark.parametrize(
    ("name", "written"),
    [("traffic light", "traffic_light"), (" a\tb  c\n", "a_b_c"), ("", "0"), ("  ", "0"), ("é", "é")],
)
def test_white_space_in_a_name_never_adds_a_field(name, written):
    (line,) = kitti_lines(detections([[0.0, 0, 1, 1]], [0.5], [0]), lambda index: name)
    assert len(line.split()) == 16
    assert line.split()[0] == written


def test_classes_whose_names_are_the_same_without_white_space_stay_separate(caplog):
    class_map = ClassMap.from_categories({0: "traffic light", 1: "traffic_light", 2: "car", 3: "Car"})
    names = kitti_names(class_map)
    assert names == {0: "traffic_light_0", 1: "traffic_light", 2: "car", 3: "Car"}
    (message,) = caplog.messages
    assert "Class 0 ('traffic light') is traffic_light_0 in KITTI labels" in message and "Rename" in message
    actual = detections([[0.0, 0, 1, 1], [0, 0, 1, 1]], [0.5, 0.5], [0, 1])
    assert [line.split()[0] for line in kitti_lines(actual, names.__getitem__)] == ["traffic_light_0", "traffic_light"]


def test_a_name_without_collision_is_not_reported(caplog):
    assert kitti_names(ClassMap.from_categories({0: "traffic light", 1: "car"})) == {0: "traffic_light", 1: "car"}
    assert not caplog.messages


def test_nothing_found_gives_no_line_and_order_is_kept():
    assert kitti_lines(detections([], [], []), str) == []
    result = detections([[0.0, 0, 1, 1], [0, 0, 2, 2]], [0.9, 0.8], [3, 4])
    assert [line.split()[0] for line in kitti_lines(result, str)] == ["3", "4"]


def test_stems_that_are_unique_stay_as_they_are():
    assert output_stems(["a/x.jpg", "b/y.png", "b/deep/z.v2.jpg"]) == {
        "a/x.jpg": "x",
        "b/y.png": "y",
        "b/deep/z.v2.jpg": "z.v2",
    }
    assert output_stems([]) == {}
    assert output_stems(["only.jpg"]) == {"only.jpg": "only"}


def test_equal_stems_of_several_folders_mirror_the_path_below_the_common_folder():
    paths = ["data/left/1.jpg", "data/right/1.jpg", "data/right/2.jpg"]
    assert list(output_stems(paths).values()) == [os.path.join("left", "1"), os.path.join("right", "1"), "2"]


def test_files_that_differ_only_in_suffix_or_case_get_names_of_their_own():
    stems = output_stems(["d/a.jpg", "d/a.png", "d/A.bmp", "d/b.jpg"])
    assert stems["d/b.jpg"] == "b"
    assert len({stem.lower() for stem in stems.values()}) == 4


def test_the_same_file_under_two_spellings_does_not_take_the_name_of_another():
    paths = ["d/x.jpg", "d/../d/x.jpg", "d/x_2.jpg", "d/x_jpg.jpg"]
    stems = output_stems(paths)
    assert set(stems) == set(paths)
    assert len({stem.lower() for stem in stems.values()}) == 4


_NAME = st.text("aAb._1", min_size=1, max_size=4).filter(lambda name: name.strip("."))
_PATH = st.builds(
    lambda folders, name, suffix: "/".join([*folders, name + suffix]),
    st.lists(_NAME, max_size=3),
    _NAME,
    st.sampled_from([".jpg", ".png", ".JPG"]),
)


@given(st.lists(_PATH, max_size=8, unique=True))
def test_every_image_gets_one_name_that_no_other_has_and_that_stays_below_the_results_folder(paths):
    stems = output_stems(paths)
    assert list(stems) == paths
    assert len({stem.lower() for stem in stems.values()}) == len(paths)
    for stem in stems.values():
        parts = PurePosixPath(stem).parts
        assert parts and not PurePosixPath(stem).is_absolute() and ".." not in parts
