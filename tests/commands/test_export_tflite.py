"""`rtdetr export export.format=tflite`, and evaluate on the exported files; requires the extra `tflite`."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
import torch

from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.formats.tflite.convert import to_fp16
from rtdetr_tool.formats.tflite.file import read, read_description
from rtdetr_tool.formats.tflite.runtime import LiteRtRuntime, run_once

pytest.importorskip("litert_torch", reason="the converter is an extra: tflite")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared(tmp_path_factory, make_exported):
    return make_exported(tmp_path_factory.mktemp("tflite"), "tflite", notes="for line 3", backbone="resnet_18")


def test_the_file_is_verified_and_has_its_metadata(shared):
    (difference,) = shared.first["differences"]
    assert difference["score"] < 1e-4 and difference["box"] < 1e-4 and difference["unmatched"] == 0
    assert (shared.first["batch"], shared.first["data_type"]) == (1, "FP32")
    description = read_description(shared.file)
    assert description["names"] == {"1": "cat"} and description["notes"] == "for line 3"
    shown = subprocess.run(["unzip", "-p", str(shared.file), "metadata.json"], capture_output=True, text=True)
    assert json.loads(shown.stdout) == description


def test_an_rfdetr_is_verified_and_scored_too(project, export_rfdetr):
    weights, file, (row,) = export_rfdetr("tflite")
    assert row["score"] < 1e-4 and row["box"] < 1e-4 and row["unmatched"] == 0
    assert project.evaluated(file)["mAP"] == pytest.approx(project.evaluated(weights)["mAP"], abs=1e-4)


def test_a_dfine_is_verified_and_scored_in_both_precisions(project):
    """Its estimate of the localization quality reads the largest values, without their indices."""
    project.spec["model"] = {"arch": "dfine", "num_select": 8, "dfine": {"variant": "n", "num_queries": 8}}
    project.write()
    weights = project.checkpoint(lively=True)
    options = (f"export.checkpoint={weights}", "export.format=tflite")
    file, half = project.folder / "dfine.tflite", project.folder / "half.tflite"
    assert project.run("export", *options, f"export.onnx_file={file}") == 0
    (row,) = json.loads((project.folder / "results/export/export.json").read_text())["differences"]
    assert row["score"] < 1e-4 and row["box"] < 1e-4 and row["unmatched"] == 0
    assert project.evaluated(file)["mAP"] == pytest.approx(project.evaluated(weights)["mAP"], abs=1e-4)
    assert project.run("export", *options, f"export.onnx_file={half}", "export.tflite.data_type=FP16") == 0
    assert half.stat().st_size < 0.7 * file.stat().st_size


def test_evaluate_and_inference_run_on_it(shared):
    expected, actual = shared.evaluated(shared.weights), shared.evaluated(shared.file)
    for name, value in expected.items():
        if isinstance(value, float):
            assert actual[name] == pytest.approx(value, abs=1e-4)
    assert shared.run("inference", f"inference.checkpoint={shared.file}", "inference.conf_threshold=0.0") == 0
    assert len(list((shared.folder / "results/inference/labels").iterdir())) == 6


def test_fp16_weights_have_half_the_size(shared):
    file = shared.folder / "half.tflite"
    file.write_bytes(to_fp16(shared.file.read_bytes()))
    assert file.stat().st_size < 0.6 * shared.file.stat().st_size
    images = torch.rand(3, 3, 64, 64)
    usual, half = LiteRtRuntime(read(shared.file)).predict(images), LiteRtRuntime(read(file)).predict(images)
    assert 0 < (usual.logits - half.logits).abs().max() < 0.05


def test_int8_with_an_array_file_in_the_layout_of_rf_detr(shared):
    pixels = np.random.default_rng(0).integers(0, 255, (8, 3, 64, 64), dtype=np.uint8)
    np.save(shared.folder / "images.npy", pixels)
    code, file = shared.export(
        "small.tflite", "export.layout=rfdetr", "export.tflite.data_type=INT8",
        f"export.tflite.calibration={shared.folder / 'images.npy'}", "export.tflite.max_cost=1",
        "export.tflite.calibration_images=6",
    )  # fmt: skip
    assert code == 0
    assert file.stat().st_size < 0.35 * shared.file.stat().st_size
    report = shared.report()
    assert report["calibration_images"] == 6 and 0 < report["cost"] <= 1
    runtime = LiteRtRuntime(read(file))
    assert (runtime.interface.layout.input, runtime.interface.classes, runtime.input_size) == ("input", 2, (64, 64))
    images = torch.from_numpy(pixels[:2] / 255).float()
    usual, result = LiteRtRuntime(read(shared.file)).predict(images), runtime.predict(images)
    centers = [boxes[..., :2].sort(dim=1).values for boxes in (usual.boxes, result.boxes)]  # queries may be reordered
    assert 0 < (centers[0] - centers[1]).abs().mean() < 0.05


def test_above_the_maximum_cost_no_file_is_written(shared, capsys):
    code, file = shared.export("dear.tflite", "export.tflite.data_type=INT8", "export.tflite.max_cost=0")
    assert code == 1
    assert "export.tflite.max_cost is 0" in capsys.readouterr().err
    assert not file.exists()


def test_an_exported_backbone_returns_features(shared):
    code, file = shared.export("backbone.tflite", "export.backbone_only=true")
    assert code == 0
    shapes = {name: tuple(level.shape) for name, level in run_once(file, torch.rand(1, 3, 64, 64)).items()}
    assert shapes == {"features": (1, 16, 8, 8), "features_1": (1, 16, 4, 4), "features_2": (1, 16, 2, 2)}


def test_a_truncated_file_is_refused(shared):
    cut = shared.folder / "cut.tflite"
    cut.write_bytes(shared.file.read_bytes()[:20_000])
    with pytest.raises(CheckpointError, match=r"cannot run .*cut.tflite"):
        read(cut)
