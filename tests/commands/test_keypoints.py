"""The commands with a keypoint head: keypoints are trained, scored, written, drawn and exported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from rtdetr_tool.cli import main
from scripts.make_keypoint_dataset import KEYPOINTS, write_split
from tests.metrics.test_coco_keypoints import judge

RFDETR = {
    "variant": "keypoint_preview", "resolution": 48, "out_feature_indexes": [1, 2], "hidden_dim": 16, "sa_nheads": 2,
    "ca_nheads": 2, "dec_layers": 2, "num_queries": 8, "group_detr": 2,
}  # fmt: skip


class Posing:
    """A folder with a few drawn figures, and a spec with the smallest RF-DETR that DINOv2 small allows."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.labels = folder, folder / "annotations" / "person_keypoints_train.json"
        write_split(folder, "train", 4, 64, seed=1)
        self.coco = json.loads(self.labels.read_text())
        source = {"image_dir": str(folder / "train"), "json_file": str(self.labels)}
        self.spec = {
            "results_dir": str(folder / "results"),
            "model": {"arch": "rfdetr", "num_select": 16, "rfdetr": dict(RFDETR)},
            "dataset": {
                "train_data_sources": [source], "val_data_sources": source, "test_data_sources": source,
                "infer_data_sources": {"image_dir": str(folder / "train")}, "num_classes": 3, "batch_size": 2,
                "workers": 0,
            },
            "train": {"accelerator": "cpu", "num_epochs": 1, "precision": "fp32"},
        }  # fmt: skip

    def write(self) -> None:
        self.labels.write_text(json.dumps(self.coco))

    def run(self, command: str, *overrides: str) -> int:
        (self.folder / "spec.json").write_text(json.dumps(self.spec))
        return main([command, "-e", str(self.folder / "spec.json"), *overrides])

    def read(self, name: str):
        return json.loads((self.folder / "results" / name).read_text())


@pytest.fixture
def posing(tmp_path):
    return Posing(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    project = Posing(tmp_path_factory.mktemp("posing"))
    assert project.run("train") == 0
    return project, project.folder / "results/train/rtdetr_model_best.pth"


def test_training_logs_keypoint_scores_and_records_the_keypoints_of_the_data(trained):
    from rtdetr_tool.checkpoints.io import load_checkpoint

    project, checkpoint = trained
    lines = [json.loads(line) for line in (project.folder / "results/train/status.json").read_text().splitlines()]
    assert any("val_keypoint_mAP" in (line.get("kpi") or {}) for line in lines)
    meta = load_checkpoint(str(checkpoint))["rtdetr_tool"]
    assert meta["spec"]["model"]["rfdetr"]["num_keypoints_per_class"] == [0, 6, 0]
    assert meta["classes"][0]["keypoints"] == list(KEYPOINTS) and "keypoints" not in meta["classes"][1]


def test_a_trained_file_is_scored_and_its_keypoints_are_written_and_drawn(trained):
    project, checkpoint = trained
    assert project.run("evaluate", f"evaluate.checkpoint={checkpoint}") == 0
    scores, rows = project.read("evaluate/results.json"), project.read("evaluate/predictions.json")
    figures = [row for row in rows if row["category_id"] == 1]
    assert figures and all(len(row["keypoints"]) == 18 for row in figures)
    expected = judge(project.coco, figures, [1], [0.05] * 6)
    assert {name: scores["keypoints"][name] for name in expected} == pytest.approx(expected, abs=1e-6)

    assert project.run("inference", "inference.conf_threshold=0", f"inference.checkpoint={checkpoint}") == 0
    found = [row for row in project.read("inference/predictions.json") if row["category_id"] == 1]
    assert found and all(len(row["keypoints"]) == 18 for row in found)
    assert len(list((project.folder / "results/inference/images_annotated").iterdir())) == 4


def test_the_graph_has_the_keypoints_as_its_third_output_and_scores_the_same(trained):
    project, checkpoint = trained
    graph = project.folder / "model.onnx"
    assert project.run("export", f"export.checkpoint={checkpoint}", f"export.onnx_file={graph}") == 0
    outputs = onnx.load(graph).graph.output
    assert [output.name for output in outputs] == ["pred_logits", "pred_boxes", "pred_keypoints"]
    assert [axis.dim_value for axis in outputs[2].type.tensor_type.shape.dim][1:] == [8, 18, 8]
    assert project.run("evaluate", f"evaluate.checkpoint={checkpoint}") == 0
    before = project.read("evaluate/predictions.json")
    assert project.run("evaluate", f"evaluate.checkpoint={graph}") == 0
    after = project.read("evaluate/predictions.json")
    assert [row["score"] for row in after] == pytest.approx([row["score"] for row in before], abs=1e-5)
    best = [next(row for row in rows if row["category_id"] == 1) for rows in (before, after)]
    assert best[0]["keypoints"] == pytest.approx(best[1]["keypoints"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "fields", "package"),
    [
        ("xml", ["export.format=openvino"], "openvino"),
        ("tflite", ["export.format=tflite", "export.batch_size=1"], "litert_torch"),
    ],
)
def test_other_formats_detect_the_same_keypoints(trained, suffix, fields, package):
    pytest.importorskip(package)
    project, checkpoint = trained
    target = project.folder / f"model.{suffix}"
    assert project.run("export", f"export.checkpoint={checkpoint}", f"export.onnx_file={target}", *fields) == 0
    predictions = []
    for path in (checkpoint, target):
        assert project.run("evaluate", f"evaluate.checkpoint={path}") == 0
        predictions.append(project.read("evaluate/predictions.json"))
    before, after = predictions
    assert [row["score"] for row in after] == pytest.approx([row["score"] for row in before], abs=1e-5)
    best = [next(row for row in rows if row["category_id"] == 1) for rows in predictions]
    assert len(best[0]["keypoints"]) == 18 and best[1]["keypoints"] == pytest.approx(best[0]["keypoints"], abs=1e-3)


@pytest.mark.slow
def test_quantize_scores_keypoints_and_keeps_them_near_those_of_torch(trained, capsys):
    import torch

    from rtdetr_tool.formats.opening import open_model
    from rtdetr_tool.spec import read_spec

    project, checkpoint = trained
    assert project.run("quantize", f"quantize.model_path={checkpoint}", "quantize.mode=static_ptq") == 0
    assert "none of the scored objects has keypoints" not in " ".join(capsys.readouterr().err.split())
    report = project.read("quantize/quantize.json")
    assert project.run("evaluate", f"evaluate.checkpoint={checkpoint}") == 0
    expected = project.read("evaluate/results.json")["keypoints"]["AP"]
    first, last = report["scores"].values()
    assert first["other_mAP"] == {"keypoints": pytest.approx(expected, abs=1e-6)}
    assert last["other_mAP"]["keypoints"] is not None
    loaded = read_spec(str(project.folder / "spec.json"), [])
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    paths = (checkpoint, project.folder / "results" / "quantize" / "quantized_model.onnx")
    full, lowered = (open_model(str(path), loaded, "cpu").runtime.predict(images).keypoints.values for path in paths)
    assert full.shape == lowered.shape == (2, 8, 18, 8)
    assert (full[..., :2].sort(1).values - lowered[..., :2].sort(1).values).abs().mean() < 0.05


@pytest.mark.slow
def test_an_engine_is_built_and_its_graph_is_scored_with_keypoints(trained, capsys):
    pytest.importorskip("tensorrt_rtx")
    project, checkpoint = trained
    graph, engine = project.folder / "model.onnx", project.folder / "model.engine"
    assert project.run("export", f"export.checkpoint={checkpoint}", f"export.onnx_file={graph}") == 0
    capsys.readouterr()
    fields = [f"gen_trt_engine.onnx_file={graph}", f"gen_trt_engine.trt_engine={engine}"]
    assert project.run("gen_trt_engine", *fields, "gen_trt_engine.compute_capability=[AMPERE_PLUS]") == 0
    assert "none of the scored objects has keypoints" not in capsys.readouterr().err
    lines = (project.folder / "results/gen_trt_engine/status.json").read_text().splitlines()
    kpi, *_ = [kpi for line in lines if "mAP_FP32" in (kpi := json.loads(line).get("kpi") or {})]
    assert kpi["keypoints_mAP_FP32"] is not None
    assert engine.stat().st_size > 1_000_000


@pytest.mark.slow
def test_a_student_with_keypoints_is_distilled_and_scored(trained):
    project, checkpoint = trained
    project.spec["distill"] = {
        "teacher": project.spec["model"], "pretrained_teacher_model_path": str(checkpoint),
        "bindings": [
            {"teacher_module_name": name, "student_module_name": name, "criterion": criterion, "weight": 1.0}
            for name, criterion in (("dsrcs", "L2"), ("pred_logits", "KL"))
        ],
    }  # fmt: skip
    try:
        assert project.run("distill") == 0
    finally:
        del project.spec["distill"]
    lines = [json.loads(line) for line in (project.folder / "results/distill/status.json").read_text().splitlines()]
    assert any("val_keypoint_mAP" in (line.get("kpi") or {}) for line in lines)


def test_a_converted_file_opens_in_the_package_and_comes_back_with_its_keypoints(trained):
    rfdetr = pytest.importorskip("rfdetr.models", reason="requires the package rfdetr")
    import torch
    from rfdetr.config import ModelConfig

    project, checkpoint = trained
    target = project.folder / "package.pth"
    assert main(["convert", "--to", "rfdetr", str(checkpoint), str(target)]) == 0
    content = torch.load(target, weights_only=False)
    stated = vars(content["args"])
    fields = {name: value for name, value in stated.items() if name in ModelConfig.model_fields}
    config = ModelConfig(**{**fields, "pretrain_weights": "none.pth", "device": "cpu"})
    rfdetr.build_model_from_config(config).load_state_dict(content["model"])  # strictly
    assert stated["num_keypoints_per_class"] == [0, 6, 0]
    assert project.run("evaluate", f"evaluate.checkpoint={checkpoint}") == 0
    before = project.read("evaluate/predictions.json")
    assert project.run("evaluate", f"evaluate.checkpoint={target}") == 0
    assert project.read("evaluate/predictions.json") == before


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (["model.rfdetr.num_keypoints_per_class=[17]"],
         ["The model has [17] keypoints by class index, but the training data has [0, 6, 0]"]),
        (["model.rfdetr.num_keypoints_per_class=[0, 0]"],
         ["num_keypoints_per_class: [0, 0] is invalid", "at least one above 0"]),
        (["model.rfdetr.bbox_reparam=false"], ["use_grouppose_keypoints is not supported with", "bbox_reparam=false"]),
        (["model.rfdetr.segmentation_head=true"], ["segmentation_head", "use_grouppose_keypoints cannot both be set"]),
        (["model.rfdetr.grouppose_keypoint_dim_downscale=3"], ["grouppose_keypoint_dim_downscale: 3 is invalid"]),
        (["model.arch=rtdetr", "model.rfdetr.use_grouppose_keypoints=true"],
         ["use_grouppose_keypoints: true is invalid with model.arch rtdetr, which predicts boxes only"]),
    ],
)  # fmt: skip
def test_contradictory_fields_are_one_clear_message(posing, capsys, change, expected):
    assert posing.run("train", *change) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert all(part in said for part in expected) and "Traceback" not in said


def test_data_with_keypoints_trains_a_detector_without_the_head(posing):
    posing.spec["model"]["rfdetr"] |= {"use_grouppose_keypoints": False, "dual_projector": False}
    posing.spec["train"]["is_dry_run"] = True
    assert posing.run("train") == 0


def test_data_without_keypoints_is_one_clear_message(posing, capsys):
    for annotation in posing.coco["annotations"]:
        annotation.pop("keypoints", None)
    posing.write()
    assert posing.run("train") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "none has keypoints" in said and "model.rfdetr.use_grouppose_keypoints: false" in said


def test_validate_data_reports_keypoints_that_are_not_usable(posing):
    first = next(a for a in posing.coco["annotations"] if "keypoints" in a)
    first["keypoints"] = first["keypoints"][:-3]
    posing.coco["categories"][0]["skeleton"] = [[1, 99]]
    posing.write()
    posing.run("validate_data")
    found = {row["kind"]: row["count"] for row in posing.read("validate_data/report.json")["findings"]}
    assert found["keypoints_malformed"] == 1 and found["skeleton_malformed"] == 1


def test_tiles_are_refused_with_the_reason(trained, capsys):
    project, checkpoint = trained
    assert project.run("evaluate", f"evaluate.checkpoint={checkpoint}", "evaluate.tiles.enabled=true") == 2
    assert "tiles.enabled is not supported for models with keypoints" in " ".join(capsys.readouterr().err.split())


def test_a_video_has_keypoints_in_its_lines_and_frames(trained):
    pytest.importorskip("av")
    from tests.video_files import write_video

    project, checkpoint = trained
    clip = write_video(project.folder / "clip.mp4", 2)
    source = f"dataset.infer_data_sources={{image_dir: null, video: '{clip}'}}"
    results = project.folder / "results" / "video"
    fields = ["inference.conf_threshold=0", f"inference.checkpoint={checkpoint}", f"inference.results_dir={results}"]
    assert project.run("inference", source, *fields) == 0
    lines = [json.loads(line) for line in (results / "video_detections" / "clip.jsonl").read_text().splitlines()]
    figures = [row for line in lines for row in line["detections"] if row["category_id"] == 1]
    assert len(lines) == 2 and figures and all(len(row["keypoints"]) == 18 for row in figures)
    assert (results / "videos_annotated" / "clip.mp4").stat().st_size > 0


def test_drawn_keypoints_and_skeleton_have_the_color_of_their_class():
    import torch

    from rtdetr_tool.ops.structures import Detections, InstanceKeypoints
    from rtdetr_tool.visualize import draw_detections

    points = torch.tensor([[[20.0, 20, 0.9], [60, 20, 0.8], [40, 60, 0.1]]])
    keypoints = InstanceKeypoints(points, torch.zeros(1, 3, 3), (3,), (80.0, 80.0))
    one = Detections(torch.tensor([[5.0, 5, 75, 75]]), torch.tensor([0.9]), torch.tensor([0]), None, keypoints)
    canvas = Image.new("RGB", (80, 80))
    drawn = np.asarray(
        draw_detections(canvas, one, lambda _: "x", {"x": (255, 0, 0)}, labels=False, skeletons={0: ((0, 1), (1, 2))})
    )
    assert tuple(drawn[20, 20]) == tuple(drawn[20, 40]) == (255, 0, 0)  # a keypoint, and the line between two
    assert not drawn[60, 40].any() and not drawn[40, 50].any()  # one that is hardly findable, and the line to it


def test_the_published_file_detects_persons_at_index_0(tmp_path):
    """It has 91 class logits, of which only the first belongs to a class, and no names."""
    import argparse

    import torch

    from rtdetr_tool.checkpoints.detector_file import read_detector
    from rtdetr_tool.families.rfdetr.names import to_rfdetr
    from rtdetr_tool.families.rfdetr.spec import RfdetrSpec
    from rtdetr_tool.models.build import build_detector
    from rtdetr_tool.spec import ModelSpec

    small = {name: value for name, value in RFDETR.items() if name != "out_feature_indexes"}
    weights = build_detector(ModelSpec(arch="rfdetr", rfdetr=RfdetrSpec(**small)), 91).state_dict()
    args = argparse.Namespace(sa_nheads=2, ca_nheads=2, dec_n_points=2)
    torch.save({"model": to_rfdetr(weights), "args": args}, tmp_path / "rf-detr-keypoint-preview-xlarge.pth")
    file = read_detector(str(tmp_path / "rf-detr-keypoint-preview-xlarge.pth"))
    assert file.meta["classes"] == [{"index": 0, "id": 1, "name": "person"}]
    assert file.meta["spec"]["model"]["rfdetr"]["variant"] == "keypoint_preview"


@pytest.mark.slow
def test_a_short_training_learns_keypoints(posing):
    """On 12 drawn images, from random weights: 360 steps find all figures and most of their keypoints."""
    write_split(posing.folder, "train", 12, 96, seed=7)
    posing.spec["model"] = {
        "arch": "rfdetr", "num_select": 20,
        "rfdetr": {"variant": "keypoint_preview", "resolution": 96, "out_feature_indexes": [1, 2, 3], "hidden_dim": 64,
                   "sa_nheads": 4, "ca_nheads": 4, "dec_layers": 2, "dim_feedforward": 64, "num_queries": 20,
                   "group_detr": 3},
    }  # fmt: skip
    posing.spec["dataset"] |= {
        "batch_size": 4, "augmentation": {"multi_scales": [], "flip_prob": 0.0, "scale_jitter_prob": 0.0}
    }  # fmt: skip
    rates = {"lr": 5e-4, "lr_backbone": 5e-4, "lr_layer_decay": 1.0, "lr_component_decay": 1.0}
    posing.spec["train"] |= {"num_epochs": 120, "validation_interval": 120, "enable_ema": False, "optim": rates}
    assert posing.run("train") == 0
    lines = [json.loads(line) for line in (posing.folder / "results/train/status.json").read_text().splitlines()]
    scores = next(line["kpi"] for line in reversed(lines) if "val_keypoint_mAP" in (line.get("kpi") or {}))
    assert scores["val_mAP50"] > 0.8 and scores["val_keypoint_mAP50"] > 0.3, scores
