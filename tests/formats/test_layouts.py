"""Layouts: how files are interpreted, and when a background is added."""

from __future__ import annotations

import pytest
import torch

from rtdetr_tool.catalog import LAYOUTS
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families import family_named
from rtdetr_tool.formats.export_model import NEVER, ExportFeatures, ExportModel, lacks_background
from rtdetr_tool.formats.graph_interface import ADDED_BACKGROUND, read_interface
from rtdetr_tool.formats.graph_tensors import predictions_of, to_graph
from rtdetr_tool.ops.classes import ClassEntry, ClassMap
from rtdetr_tool.ops.pixels import denormalize, normalize

SIZE = (64, 96)
THEIRS = {"input": (None, 3, 384, 384)}, {"dets": (None, 300, 4), "labels": (None, 300, 91)}
OURS = {"inputs": (2, 3, 64, 96)}, {"pred_logits": (2, 20, 3), "pred_boxes": (2, 20, 4), "labels": (2, 9)}


def test_both_layouts_are_told_by_their_names():
    result = read_interface(*THEIRS, {}, "a.onnx")
    assert (result.layout, result.batch, result.size) == (LAYOUTS["rfdetr"], None, (384, 384))
    assert (result.queries, result.classes) == (300, 91)
    result = read_interface(*OURS, {}, "a.onnx")
    assert (result.layout, result.batch, result.size) == (LAYOUTS["tao"], 2, (64, 96))
    assert (result.queries, result.classes) == (20, 3), "labels next to boxes and scores have another meaning"


def test_an_added_background_is_no_class():
    assert read_interface(*THEIRS, {ADDED_BACKGROUND: True}, "a.onnx").classes == 90
    assert read_interface(*THEIRS, {ADDED_BACKGROUND: "yes"}, "a.onnx").classes == 91


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ({"input": (1, 3, 8, 8)}, {"features": (1, 256, 4, 4)}, "export.backbone_only"),
        ({"images": (1, 3, 8, 8)}, {"output0": (1, 84, 8400)}, r"images \[1, 3, 8, 8\].*layout tao.*layout rfdetr"),
        ({"input": (1, 3, None, 8)}, THEIRS[1], "fixed height and width"),
        ({"input": (1, 8, 8, 3)}, THEIRS[1], r"\[1, 8, 8, 3\]"),
    ],
)
def test_other_interfaces_are_named(inputs, outputs, message):
    with pytest.raises(CheckpointError, match=message):
        read_interface(inputs, outputs, {}, "a.onnx")


def test_normalised_pixels_by_hand():
    """The red value of a white pixel: (1 - 0.485) / 0.229."""
    white = torch.ones(1, 3, 1, 1)
    assert to_graph(white, LAYOUTS["rfdetr"])[0, 0].item() == pytest.approx(2.248908)
    assert to_graph(white, LAYOUTS["tao"]) is white
    images = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(denormalize(normalize(images)), images)


def classes(*names: str | None) -> ClassMap:
    entries = [ClassEntry(index, index, name) for index, name in enumerate(names) if name]
    return ClassMap(entries, len(names))


@pytest.mark.parametrize(
    ("arch", "class_map", "expected"),
    [
        ("rtdetr", classes("cat", "dog"), True),
        ("rtdetr", classes(None, "cat"), True),  # programs that drop the last score would drop the cat
        ("rtdetr", classes("cat", None), False),
        ("rfdetr", classes("cat", "dog"), True),
        ("rfdetr", classes("cat", None), False),  # as trained by Roboflow's package
        ("rfdetr", classes(None, "person"), False),  # category ids, as in the weights trained on COCO
        ("rtdetr", None, True),
        ("rfdetr", None, False),
    ],
)
def test_a_background_is_added_where_the_model_has_no_score_to_spare(arch, class_map, expected):
    assert lacks_background(LAYOUTS["rfdetr"], family_named(arch), class_map) is expected
    assert not lacks_background(LAYOUTS["tao"], family_named(arch), class_map)


@torch.no_grad()
def test_a_layout_changes_names_order_and_pixels_but_not_what_is_found(detector):
    usual, other = ExportModel(detector).eval(), ExportModel(detector, None, LAYOUTS["rfdetr"], True).eval()
    assert (other.input_name, other.output_names) == ("input", ("dets", "labels"))
    images = torch.rand(2, 3, *SIZE)
    logits, boxes = usual(images)
    dets, labels = other(normalize(images))
    torch.testing.assert_close(dets, boxes, atol=1e-4, rtol=0)
    torch.testing.assert_close(labels[..., :-1], logits, atol=1e-3, rtol=0)
    assert (labels[..., -1] == NEVER).all() and NEVER < -88, "a score of 0"
    inputs, outputs = {"input": (2, 3, *SIZE)}, {"dets": (2, 20, 4), "labels": (2, 20, 4)}
    interface = read_interface(inputs, outputs, {ADDED_BACKGROUND: True}, "a.onnx")
    result = predictions_of({"dets": dets, "labels": labels}, interface)
    assert torch.equal(result.logits, labels[..., :3]) and torch.equal(result.boxes, dets) and result.masks is None


@torch.no_grad()
def test_without_decoder_the_maps_before_it_come_out(detector):
    model = ExportFeatures(detector, LAYOUTS["tao"], SIZE).eval()
    assert (model.input_name, model.output_names) == ("inputs", ("features", "features_1", "features_2"))
    images = torch.rand(1, 3, *SIZE)
    actual, expected = model(images), detector.deploy().features(images)
    assert [tuple(level.shape) for level in actual] == [(1, 32, 8, 12), (1, 32, 4, 6), (1, 32, 2, 3)]
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert not any("decoder" in name for name, _ in model.named_parameters())
