"""`export.layout` and `export.backbone_only`, and evaluate on the exported files."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from rtdetr_tool.formats.onnx.file import description_of
from rtdetr_tool.formats.opening import open_detector
from rtdetr_tool.formats.table import FORMATS
from rtdetr_tool.ops.pixels import normalize
from rtdetr_tool.spec import read_spec


@pytest.fixture(scope="module")
def shared(tmp_path_factory, make_project):
    """A project with a checkpoint, and `export(name, *overrides)` that exports it."""
    project = make_project(tmp_path_factory.mktemp("layouts"))
    project.weights = project.checkpoint(lively=True)

    def export(name: str, *overrides: str):
        file = project.folder / name
        code = project.run("export", f"export.checkpoint={project.weights}", f"export.onnx_file={file}", *overrides)
        return code, file

    project.export = export
    return project


@pytest.fixture(scope="module")
def as_rfdetr(shared):
    code, file = shared.export("rfdetr.onnx", "export.layout=rfdetr")
    assert code == 0
    return file


def evaluated(project, file) -> dict:
    assert project.run("evaluate", f"evaluate.checkpoint={file}") == 0
    return json.loads((project.folder / "results/evaluate/results.json").read_text())


def test_an_rt_detr_in_the_layout_of_rf_detr(shared, as_rfdetr):
    session = onnxruntime.InferenceSession(as_rfdetr, providers=["CPUExecutionProvider"])
    assert [(value.name, value.shape) for value in session.get_inputs()] == [("input", ["batch", 3, 64, 64])]
    outputs = [(value.name, value.shape) for value in session.get_outputs()]
    assert outputs == [("dets", ["batch", 8, 4]), ("labels", ["batch", 8, 3])], "two classes and the background"
    description = description_of(onnx.load(as_rfdetr))
    assert "mean 0.485 0.456 0.406" in description["normalisation"] and description["background_added"] is True
    report = json.loads((shared.folder / "results/export/export.json").read_text())
    assert report["layout"] == "rfdetr" and [each["batch"] for each in report["differences"]] == [1, 3]


def test_evaluate_scores_like_the_checkpoint(shared, as_rfdetr):
    expected, actual = evaluated(shared, shared.weights), evaluated(shared, as_rfdetr)
    for name, value in expected.items():
        if isinstance(value, float):
            assert actual[name] == pytest.approx(value, abs=1e-4)


def test_an_exported_backbone_has_features_and_no_detections(shared, capsys):
    code, file = shared.export("backbone.onnx", "export.backbone_only=true", "export.layout=rfdetr")
    assert code == 0
    report = json.loads((shared.folder / "results/export/export.json").read_text())
    assert report["outputs"] == ["features", "features_1", "features_2"]
    assert all(0 <= each["relative"] < 1e-4 for each in report["differences"])
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    images = torch.rand(2, 3, 64, 64)
    actual = session.run(None, {"input": normalize(images).numpy()})
    options = [f"export.checkpoint={shared.weights}", f"export.onnx_file={file}"]
    detector = open_detector(str(shared.weights), read_spec(str(shared.spec_file), options, "export")).detector.deploy()
    with torch.no_grad():
        expected = detector.features(images)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other.numpy(), atol=1e-4)
    capsys.readouterr()
    assert shared.run("evaluate", f"evaluate.checkpoint={file}") == 2
    assert "export.backbone_only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["export.layout=yolo"], "export.layout: 'yolo' is invalid; expected one of tao, rfdetr"),
        (["export.layout=rfdetr", "export.include_postprocess=true"], "export.include_postprocess: requires"),
        (["export.layout=rfdetr", "export.serialize_nvdsinfer=true"], "export.serialize_nvdsinfer: requires"),
        (["export.backbone_only=true", "export.include_postprocess=true"], "export.include_postprocess: requires"),
        (["export.format=tflite", "export.include_postprocess=true"], "export.include_postprocess: requires"),
        (["export.format=tflite", "export.tflite.data_type=INT4"], "export.tflite.data_type"),
        (
            ["export.format=tflite", "export.backbone_only=true", "export.tflite.data_type=INT8"],
            "export.tflite.data_type: INT8 is not supported with backbone_only",
        ),
        (["export.tflite.data_type=FP16"], "export.tflite.data_type: FP16 requires export.format=tflite"),
    ],
)
def test_wrong_input_is_one_message(overrides, message, shared, capsys):
    code, file = shared.export("wrong.onnx", *overrides)
    assert code == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown
    assert not file.exists() and not file.with_suffix(".tflite").exists()


def without(monkeypatch, *packages: str) -> None:
    """Pretend that these are not installed."""
    from importlib.util import find_spec

    spec = "rtdetr_tool.formats.table.find_spec"
    monkeypatch.setattr(spec, lambda name, *rest: None if name in packages else find_spec(name))


def test_a_missing_converter_is_named_with_the_pip_command(shared, capsys, monkeypatch):
    without(monkeypatch, "litert_torch")
    assert shared.export("lite.tflite", "export.format=tflite")[0] == 2
    shown = capsys.readouterr().err
    assert "export.format=tflite requires litert_torch" in shown and 'pip install "rtdetr-tool[tflite]"' in shown


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "none.tflite does not exist"), (b"x" * 20, "is not a TFLite file"), (b"", "is not a TFLite file")],
)
def test_a_file_that_is_not_tflite_is_refused(content, message, shared, capsys):
    file = shared.folder / "none.tflite"
    file.unlink(missing_ok=True)
    if content is not None:
        file.write_bytes(content)
    assert shared.run("evaluate", f"evaluate.checkpoint={file}") == 2
    assert message in capsys.readouterr().err


def test_a_missing_interpreter_is_named_with_the_pip_command(shared, capsys, monkeypatch):
    without(monkeypatch, "ai_edge_litert")
    file = shared.folder / "some.tflite"
    file.write_bytes(b"\x1c\0\0\0TFL3" + b"\0" * 40)
    assert shared.run("evaluate", f"evaluate.checkpoint={file}") == 2
    assert FORMATS["tflite"].to_run.pip_command in capsys.readouterr().err
