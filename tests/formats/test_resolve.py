"""A spec must not contradict the images and classes recorded in a file; values that are not recorded are logged."""

from __future__ import annotations

import logging

import pytest

from rtdetr_tool.catalog import LAYOUTS
from rtdetr_tool.checkpoints.metadata import build_metadata
from rtdetr_tool.checkpoints.recorded_fields import value_at
from rtdetr_tool.errors import CheckpointError, UserError
from rtdetr_tool.formats.base import Recorded
from rtdetr_tool.formats.description import describe, normalization
from rtdetr_tool.formats.graph_file import recorded_in
from rtdetr_tool.formats.graph_interface import GraphInterface
from rtdetr_tool.formats.requested_size import RequestedSize
from rtdetr_tool.formats.resolve import resolve
from rtdetr_tool.spec import read_spec, spec_from_dict, spec_to_dict
from rtdetr_tool.spec.queries import recorded_fields

TRAINED = {
    "model": {"backbone": "resnet_18", "num_queries": 50, "num_select": 40, "dec_layers": 3, "eval_idx": 1},
    "dataset": {
        "num_classes": 3, "class_ids": "contiguous",
        "augmentation": {"eval_spatial_size": [64, 96], "preserve_aspect_ratio": False},
    },
}  # fmt: skip
CLASSES = [{"index": 0, "id": 4, "name": "cat"}, {"index": 1, "id": 7, "name": "dog"}]
META = build_metadata("1", spec_to_dict(spec_from_dict(TRAINED)), CLASSES)
GRAPH = GraphInterface(LAYOUTS["tao"], None, (64, 96), 50, 3, ("pred_logits", "pred_boxes"))
RATIO = "dataset.augmentation.preserve_aspect_ratio"


def opened(kind, *overrides, meta=META, asked=None):
    """The resolved spec and classes for a weights file or a graph with this metadata."""
    loaded, asked = read_spec(None, overrides), asked or RequestedSize()
    if kind == "weights":
        return resolve(Recorded("model.pth", meta), loaded, asked)
    return resolve(recorded_in("model.onnx", describe(meta, (64, 96)), GRAPH), loaded, asked)


KINDS = pytest.mark.parametrize("kind", ["weights", "graph"])


@KINDS
@pytest.mark.parametrize(
    ("override", "stored"),
    [
        (f"{RATIO}=true", "False"),
        ("dataset.num_classes=80", "3"),
        ("dataset.remap_mscoco_category=true", "False"),
        ("dataset.class_ids=raw", "0 = id 4, 1 = id 7"),
        ("model.backbone=resnet_50", "resnet_18"),
    ],
)
def test_a_contradiction_is_one_message_with_field_values_and_what_to_do(kind, override, stored):
    name, value = override.split("=")
    with pytest.raises(CheckpointError) as error:
        opened(kind, override)
    text = str(error.value)
    assert error.value.exit_code == 2
    shown = {"true": "rue"}.get(value, value)
    assert all(part in text for part in (name, shown, stored, "Remove these fields", "train.pretrained_model_path"))
    assert ("model.pth" if kind == "weights" else "model.onnx") in text


@KINDS
def test_what_the_file_records_may_be_said_again(kind, caplog):
    with caplog.at_level(logging.WARNING):
        spec, class_map = opened(
            kind, f"{RATIO}=false", "dataset.num_classes=3", "dataset.class_ids=contiguous", "model.num_select=40",
            "dataset.augmentation.eval_spatial_size=[64,96]", "model.eval_idx=1", "dataset.remap_mscoco_category=false",
        )  # fmt: skip
    assert caplog.text == "" and len(class_map) == 2
    assert spec.dataset.augmentation.eval_spatial_size == [64, 96] and spec.model.num_select == 40


@KINDS
def test_fewer_detections_are_warned_about_and_more_are_not(kind, caplog):
    assert opened(kind, "model.num_select=200")[0].model.num_select == 200
    assert caplog.text == ""
    assert opened(kind, "model.num_select=5")[0].model.num_select == 5
    assert "model.num_select is 5 in the spec, 40 in model" in caplog.text


@pytest.mark.parametrize("override", ["model.num_queries=20", "model.eval_idx=0"])
def test_what_a_graph_has_built_in_can_be_changed_in_weights_only(override, caplog):
    opened("weights", override)
    assert override.split("=")[0] in caplog.text
    with pytest.raises(CheckpointError, match=f"(?s){override.split('=')[0]} is .*where it is fixed"):
        opened("graph", override)


def test_another_input_size_is_warned_about_for_weights_and_refused_for_a_graph(caplog):
    asked = RequestedSize(128, 128, "evaluate")
    assert opened("weights", asked=asked)[0].dataset.augmentation.eval_spatial_size == [128, 128]
    assert "Images are resized to 128 x 128 (height x width), but model.pth was trained for 64 x 96" in caplog.text
    with pytest.raises(CheckpointError, match=r"64 x 96 .*, but evaluate.input_height, evaluate.input_width requests"):
        opened("graph", asked=asked)
    with pytest.raises(CheckpointError, match=r"dataset.augmentation.eval_spatial_size requests 128 x 64"):
        opened("graph", "dataset.augmentation.eval_spatial_size=[128,64]")


@KINDS
def test_one_side_alone_leaves_the_other_to_the_file(kind, caplog):
    spec, _ = opened(kind, asked=RequestedSize(width=96, section="evaluate"))
    assert spec.dataset.augmentation.eval_spatial_size == [64, 96] and caplog.text == ""


def test_one_side_alone_is_the_side_of_a_square_where_images_are_padded():
    sizes = {"eval_spatial_size": [64, 96], "preserve_aspect_ratio": True}
    padded = build_metadata("1", {**META["spec"], "dataset": {"num_classes": 3, "augmentation": sizes}}, CLASSES)
    spec, _ = opened("weights", meta=padded, asked=RequestedSize(width=64, section="evaluate"))
    assert spec.dataset.augmentation.eval_spatial_size == [64, 64]


@pytest.mark.parametrize(
    ("family", "multiple", "nearest"),
    [("rtdetr", 32, "96 or 128"), ("rfdetr", 12, "96 or 108"), ("dfine", 32, "96 or 128")],
)
def test_the_family_of_the_file_decides_which_sizes_are_valid_not_that_of_the_spec(family, multiple, nearest):
    """The spec does not have to name the architecture of the file that it opens."""
    variants = {"rfdetr": {"arch": "rfdetr", "rfdetr": {"variant": "seg_nano"}}, "dfine": {"arch": "dfine"}}
    trained = spec_from_dict({"model": variants.get(family, {})})
    meta = build_metadata("1", spec_to_dict(trained), CLASSES)
    with pytest.raises(UserError) as error:
        opened("weights", meta=meta, asked=RequestedSize(width=100, section="evaluate"))
    expected = f"evaluate.input_width: 100 is invalid; expected a multiple of {multiple}, nearest: {nearest}"
    assert str(error.value) == expected
    asked = RequestedSize(5 * multiple, 4 * multiple, "inference")
    assert opened("weights", meta=meta, asked=asked)[0].dataset.augmentation.eval_spatial_size == [
        5 * multiple,
        4 * multiple,
    ]


def test_what_a_foreign_file_does_not_record_is_said_with_where_it_comes_from(caplog):
    foreign = build_metadata("", {"model": {"backbone": "resnet_18"}, "dataset": {"num_classes": 3}}, [])
    spec, class_map = opened("weights", f"{RATIO}=true", meta=foreign)
    assert spec.dataset.augmentation.preserve_aspect_ratio is True and class_map is None
    for part in (
        "model.pth does not record its preprocessing", f"{RATIO} = true (given)",
        "eval_spatial_size = [640, 640] (default)", "dataset.class_ids = auto (default)",
    ):  # fmt: skip
        assert part in caplog.text


def test_a_graph_without_description_says_what_is_assumed(caplog):
    spec, class_map = resolve(recorded_in("a.onnx", {}, GRAPH), read_spec(None))
    assert spec.dataset.num_classes == 3 and spec.dataset.augmentation.eval_spatial_size == [64, 96]
    assert class_map is None and f"{RATIO} = false (default)" in caplog.text and normalization(False) in caplog.text
    with pytest.raises(CheckpointError, match="padded to a square"):
        resolve(recorded_in("a.onnx", {}, GRAPH), read_spec(None, [f"{RATIO}=true"]))
    with pytest.raises(CheckpointError, match=r"50 queries built in, but model.num_queries is 300"):
        resolve(recorded_in("a.onnx", {}, GRAPH), read_spec(None, ["model.num_queries=300"]))


def test_the_queries_of_every_family_must_be_those_of_a_graph_without_description():
    """RF-DETR's field is in a section of its own."""
    rfdetr = ["model.arch=rfdetr", "model.rfdetr.variant=nano"]
    resolve(recorded_in("a.onnx", {}, GRAPH), read_spec(None, [*rfdetr, "model.rfdetr.num_queries=50"]))
    with pytest.raises(CheckpointError, match=r"50 queries built in, but model.rfdetr.num_queries is 300"):
        resolve(recorded_in("a.onnx", {}, GRAPH), read_spec(None, [*rfdetr, "model.rfdetr.num_queries=300"]))


def test_pixels_that_do_not_go_with_the_names_of_the_graph_are_refused():
    other = {**describe(META, (64, 96)), "normalisation": normalization(True)}
    with pytest.raises(CheckpointError, match=r"was exported for RGB.*deviation 0.229"):
        resolve(recorded_in("a.onnx", other, GRAPH), read_spec(None))


def test_deployed_files_record_every_field_declared_so():
    stored = describe(META, (64, 96))["rtdetr_tool"]["spec"]
    assert [name for name in recorded_fields() if value_at(META["spec"], name) != value_at(stored, name)] == []
    assert {"preserve_aspect_ratio", "eval_spatial_size"} == set(stored["dataset"]["augmentation"])


def test_an_rfdetr_of_another_resolution_takes_images_of_that_size(caplog):
    data = {"model": {"arch": "rfdetr", "rfdetr": {"resolution": 64}}, "dataset": {"num_classes": 3}}
    meta = build_metadata("1", spec_to_dict(spec_from_dict(data)), CLASSES)
    assert opened("weights", meta=meta)[0].dataset.augmentation.eval_spatial_size == [64, 64]
    spec, _ = opened("weights", "model.rfdetr.resolution=128", meta=meta)
    assert spec.dataset.augmentation.eval_spatial_size == [128, 128] and "trained for 64 x 64" in caplog.text
