"""The commands with a segmentation head: masks are trained, scored, written, drawn and exported."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import onnx
import pytest
from PIL import Image

from rtdetr_tool.ops.masks import decode

RFDETR = {
    "variant": "seg_nano", "resolution": 48, "out_feature_indexes": [1, 2], "hidden_dim": 16, "sa_nheads": 2,
    "ca_nheads": 2, "dec_layers": 2, "dim_feedforward": 16, "num_queries": 8, "group_detr": 2,
}  # fmt: skip


@pytest.fixture
def segmenting(project):
    """The project with polygons of its cats, and the smallest RF-DETR that DINOv2 small allows."""
    project.spec["model"] = {"arch": "rfdetr", "num_select": 8, "rfdetr": dict(RFDETR)}
    del project.spec["dataset"]["augmentation"]
    for annotation in project.coco["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    project.write()
    return project


def read(project, name: str):
    return json.loads((project.folder / "results" / name).read_text())


def mask_stats_of_pycocotools(project, predictions):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(project.labels))
        evaluation = COCOeval(truth, truth.loadRes(predictions), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [None if value == -1 else value for value in evaluation.stats.tolist()]  # undefined


@pytest.mark.slow
def test_a_trained_file_is_scored_and_its_masks_are_written_and_drawn(segmenting):
    run = ["train.is_dry_run=false", "train.num_epochs=1", "train.checkpoint_interval=1", "train.precision=fp32"]
    assert segmenting.run("train", *run) == 0
    assert any("val_segm_mAP" in (line.get("kpi") or {}) for line in segmenting.status("train"))
    checkpoint = segmenting.folder / "results/train/rtdetr_model_best.pth"
    assert segmenting.run("evaluate", f"evaluate.checkpoint={checkpoint}") == 0
    scores, predictions = read(segmenting, "evaluate/results.json"), read(segmenting, "evaluate/predictions.json")
    assert all(row["segmentation"]["size"] == [48, 64] for row in predictions)
    names = [name for name in scores["masks"] if name not in ("mAP", "mAP50")]
    expected = mask_stats_of_pycocotools(segmenting, predictions)
    assert [scores["masks"][name] for name in names] == pytest.approx(expected, abs=1e-9)

    actual = ["inference.conf_threshold=0", f"inference.checkpoint={checkpoint}"]
    assert segmenting.run("inference", *actual) == 0
    rows = read(segmenting, "inference/predictions.json")
    first = [row["segmentation"] for row in rows if row["image_id"] == 0]
    masks = [decode(segmentation["counts"].encode(), 48, 64) for segmentation in first]
    drawn = np.asarray(Image.open(segmenting.folder / "results/inference/images_annotated/1.png").convert("RGB"))
    covered, original = np.any(masks, axis=0), np.asarray(Image.open(segmenting.image(1)))
    assert covered.any() and (drawn[covered] != original[covered]).any(-1).mean() > 0.9

    graph = segmenting.folder / "model.onnx"
    assert segmenting.run("export", f"export.checkpoint={checkpoint}", f"export.onnx_file={graph}") == 0
    assert [output.name for output in onnx.load(graph).graph.output] == ["pred_logits", "pred_boxes", "pred_masks"]
    assert segmenting.run("evaluate", f"evaluate.checkpoint={graph}") == 0
    again = read(segmenting, "evaluate/results.json")
    assert again["masks"] == pytest.approx(scores["masks"], abs=1e-6)


def test_tiles_are_refused_with_the_reason(segmenting, capsys):
    checkpoint = segmenting.checkpoint()
    for command in ("evaluate", "inference"):
        assert segmenting.run(command, f"{command}.checkpoint={checkpoint}", f"{command}.tiles.enabled=true") == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "tiles.enabled is not supported for models with masks, because the masks of tiles would have" in said


def test_the_graph_of_roboflows_layout_has_masks_as_its_third_output(segmenting):
    graph = segmenting.folder / "model.onnx"
    checkpoint = segmenting.checkpoint()
    out = [f"export.checkpoint={checkpoint}", f"export.onnx_file={graph}", "export.layout=rfdetr"]
    assert segmenting.run("export", *out) == 0
    outputs = onnx.load(graph).graph.output
    assert [output.name for output in outputs] == ["dets", "labels", "masks"]
    assert [axis.dim_value for axis in outputs[2].type.tensor_type.shape.dim][1:] == [8, 12, 12]


def test_a_segmentation_head_without_masks_in_the_data_is_one_clear_message(segmenting, capsys):
    for annotation in segmenting.coco["annotations"]:
        del annotation["segmentation"]
    segmenting.write()
    assert segmenting.run("train") == 2
    said = capsys.readouterr().err
    said = " ".join(said.split())
    assert "has 6 objects, " in said and "mask" in said and "model.rfdetr.segmentation_head: false" in said
    assert "Traceback" not in said


def test_rtdetr_with_a_segmentation_head_is_one_clear_message(segmenting, capsys):
    segmenting.spec["model"] = {"rfdetr": {"segmentation_head": True}}
    segmenting.write()
    assert segmenting.run("train") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "segmentation_head: true is invalid with model.arch rtdetr, which predicts boxes only" in said


def test_a_checkpoint_without_the_head_contradicts_a_spec_with_it(segmenting, capsys):
    segmenting.spec["model"]["rfdetr"]["segmentation_head"] = False
    segmenting.write()
    checkpoint = segmenting.checkpoint()
    asked = [f"evaluate.checkpoint={checkpoint}", "model.rfdetr.segmentation_head=true"]
    assert segmenting.run("evaluate", *asked) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "model.rfdetr.segmentation_head is True in the spec, but False in the checkpoint" in said
