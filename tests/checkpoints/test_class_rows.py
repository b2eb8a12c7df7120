"""Rows of class heads are copied by class name; otherwise the reason is reported."""

from __future__ import annotations

import pytest
import torch

from rtdetr_tool.checkpoints.class_rows import is_class_tensor, match_rows, with_class_rows
from rtdetr_tool.checkpoints.loading import load_into
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.spec import ModelSpec

TINY = {
    "rtdetr": ModelSpec(
        backbone="timm/test_resnet", hidden_dim=32, nheads=4, dim_feedforward=32, feat_channels=[32, 32, 32],
        dec_layers=2, num_queries=10,
    ),
    "rfdetr": ModelSpec(
        arch="rfdetr", rfdetr=RfdetrSpec(num_queries=5, group_detr=2, dim_feedforward=16, dec_layers=1)
    ),
}  # fmt: skip


def classes(*names, first=0):
    return [{"index": index, "id": index + 1, "name": name} for index, name in enumerate(names, first)]


def rows(own, stored, own_rows=None, file_rows=None):
    return match_rows(own, stored, own_rows or len(own), file_rows or len(stored))


@pytest.mark.parametrize(
    ("own", "stored", "expected"),
    [
        ("abc", "abc", [0, 1, 2]),
        ("cba", "abc", [2, 1, 0]),
        ("dabc", "abc", [None, 0, 1, 2]),
        ("bc", "abc", [1, 2]),
        ("xyz", "abc", [None, None, None]),
    ],
)
def test_each_class_gets_the_row_of_its_name(own, stored, expected):
    match = rows(classes(*own), classes(*stored))
    assert match.rows == expected
    assert match.kept == [name for name in own if name in stored]
    assert match.new == [name for name in own if name not in stored]
    assert match.dropped == [name for name in stored if name not in own]
    assert match.complete == (set(own) == set(stored))


def test_the_messages_name_kept_new_and_dropped_classes():
    text = "\n".join(rows(classes("d", "c", "a"), classes("a", "b", "c")).lines("old.pth"))
    assert "Copied the class rows of 2 classes by name: c, a." in text
    assert "keep their initial values: d." in text
    assert "Dropped classes of old.pth that the dataset does not have: b." in text
    unknown = rows(classes("x"), classes("a")).lines("old.pth")
    assert "old.pth has no class of the dataset" in unknown[0]


def test_names_that_differ_in_spelling_are_different_classes_with_a_message():
    match = rows(classes("Red Car", "dog", "stop-sign"), classes("redcar", "dog ", "Stop_Sign"))
    assert match.rows == [None, None, None]
    assert match.similar == [("Red Car", "redcar"), ("dog", "dog "), ("stop-sign", "Stop_Sign")]
    assert "'Red Car' in the dataset, 'redcar' in old.pth" in "\n".join(match.lines("old.pth"))


def test_rows_without_a_class_are_copied_from_rows_without_a_class():
    """The last row of an RF-DETR, and index 0 if category ids start at 1."""
    background = rows(classes("b", "a"), classes("a", "b", "c"), own_rows=3, file_rows=4)
    assert background.rows == [1, 0, 3]
    raw = rows(classes("b", "a", first=1), classes("a", "b", first=1), own_rows=3, file_rows=3)
    assert raw.rows == [0, 2, 1]
    assert rows(classes("a"), classes("a", "b"), own_rows=2).rows == [0, None]


def test_without_names_rows_are_only_copied_by_position_if_their_number_is_equal():
    equal = rows(classes("a", "b"), [], file_rows=2)
    assert equal.rows == [0, 1] and not equal.complete
    assert "Copied class rows by position, because old.pth has no class names" in equal.lines("old.pth")[0]
    other = rows(classes("a", "b"), [], file_rows=3)
    assert other.rows == [None, None] and not other.complete
    assert "class heads keep their initial values, because old.pth has no class names" in other.lines("old.pth")[0]


def test_both_published_spellings_of_coco_are_the_same_class():
    match = rows(classes("tv", "person", "airplane"), classes("person", "aeroplane", "tvmonitor"))
    assert match.rows == [2, 0, 1] and match.complete
    assert "'tvmonitor' for 'tv'" in "\n".join(match.lines("old.pth"))
    both = rows(classes("sofa", "couch"), classes("couch", "sofa"))
    assert both.rows == [1, 0] and not both.spelled


def test_a_name_of_several_rows_is_reported():
    match = rows(classes("a", "b"), classes("a", "b", "a"))
    assert match.rows == [0, 1] and match.repeated == ["a"] and not match.complete
    assert rows(classes("a", "b", "a"), classes("a", "b", "a")).rows == [0, 1, 2]


@pytest.mark.parametrize("entry", [{"index": 7, "name": "a"}, {"index": "x", "name": "a"}, {"name": "a"}])
def test_an_invalid_list_of_classes_is_an_error_of_the_file(entry):
    with pytest.raises(CheckpointError, match=r"^old\.pth "):
        match_rows(classes("a"), [entry], 1, 1, "old.pth")


@pytest.mark.parametrize("family", TINY)
def test_the_tensors_whose_size_follows_the_classes_are_the_class_tensors(family):
    """A missing one would be copied by position."""
    with torch.device("meta"):
        small, large = (build_detector(TINY[family], number).state_dict() for number in (3, 5))
    growing = {name for name, tensor in small.items() if tensor.shape != large[name].shape}
    assert growing == set(filter(is_class_tensor, small))
    assert len(growing) == {"rtdetr": 7, "rfdetr": 6}[family]


@pytest.mark.parametrize("family", TINY)
def test_all_class_tensors_are_matched_by_name_and_nothing_else_changes(family):
    torch.manual_seed(0)
    extra = family == "rfdetr"
    source, target = build_detector(TINY[family], 3 + extra), build_detector(TINY[family], 4 + extra)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    report = load_into(
        target, source.state_dict(), source="old.pth", strict=False, classes=classes(*"dcba"),
        file_classes=classes(*"abc"),
    )  # fmt: skip
    given, after = source.state_dict(), target.state_dict()
    for name, tensor in after.items():
        if not is_class_tensor(name):
            assert torch.equal(tensor, given[name]), name
            continue
        assert torch.equal(tensor[1:4], given[name][[2, 1, 0]]), name
        assert torch.equal(tensor[0], before[name][0]), name
        if len(tensor) > 4:  # padding of the denoising queries, or the background
            assert torch.equal(tensor[4], given[name][3]), name
    assert not (report.reinitialized or report.missing) and not report.complete  # "d" is new
    assert report.class_rows.new == ["d"]


def test_class_tensors_of_another_width_are_reported_with_their_shape():
    weights = {"decoder.enc_score_head.weight": torch.zeros(2, 8)}
    own = {"decoder.enc_score_head.weight": torch.ones(2, 4)}
    arranged, account = with_class_rows(weights, own, classes("a", "b"), classes("b", "a"), "old.pth")
    assert arranged == {} and account is None


def test_heads_without_a_known_class_keep_their_initial_values():
    torch.manual_seed(0)
    source, target = (build_detector(TINY["rtdetr"], 2) for _ in range(2))
    before = target.decoder.enc_score_head.weight.detach().clone()
    report = load_into(
        target, source.state_dict(), source="old.pth", strict=False, classes=classes("x", "y"),
        file_classes=classes("a", "b"),
    )  # fmt: skip
    assert torch.equal(target.decoder.enc_score_head.weight, before)
    assert len(report.reinitialized) == 7 and "another shape" not in report.summary()
