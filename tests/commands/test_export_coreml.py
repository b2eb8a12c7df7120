"""`rtdetr export export.format=coreml`: what is written, checked without macOS, and what other commands do with it."""

from __future__ import annotations

import shutil

import pytest
import torch

from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.formats.coreml.file import PROGRAM, read
from rtdetr_tool.formats.coreml.program import EvaluatedProgram

pytest.importorskip("coremltools", reason="the converter is an extra: coreml")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared(tmp_path_factory, make_exported):
    return make_exported(tmp_path_factory.mktemp("coreml"), "coreml", notes="123")


def test_the_evaluated_program_agrees_with_pytorch(shared):
    (difference,) = shared.first["differences"]
    assert difference["score"] < 1e-4 and difference["box"] < 1e-4 and difference["unmatched"] == 0
    assert "Core ML itself was not run" in shared.first["compared"]
    assert shared.first["bytes"] == sum(file.stat().st_size for file in shared.file.rglob("*") if file.is_file())


def test_the_package_names_inputs_outputs_and_classes(shared):
    file = read(shared.file)
    inputs, outputs = file.spec.description.input, file.spec.description.output
    kinds = {feature.type.multiArrayType.dataType for feature in (*inputs, *outputs)}
    assert [feature.name for feature in inputs] == ["inputs"] and kinds == {65568}  # ArrayDataType.FLOAT32
    assert [feature.name for feature in outputs] == ["pred_logits", "pred_boxes"]
    assert (file.interface.size, file.interface.queries, file.interface.classes) == ((64, 64), 8, 2)
    assert file.description["names"] == {"1": "cat"} and file.description["notes"] == "123"
    assert file.description["input_size"] == [64, 64]
    assert sorted(entry.name for entry in shared.file.iterdir()) == ["Data", "Manifest.json"]


def test_fp16_has_half_the_size_and_rounds(shared):
    code, file = shared.export("half.mlpackage", "export.coreml.data_type=FP16", "export.coreml.max_cost=1")
    assert code == 0
    report = shared.report()
    assert report["data_type"] == "FP16" and 0 < report["cost"] < 1
    assert report["bytes"] < 0.7 * shared.first["bytes"] and read(file).description["precision"] == "FP16"
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    difference = EvaluatedProgram(file).predict(images).logits - EvaluatedProgram(shared.file).predict(images).logits
    assert 0 < difference.abs().max() < 1


def test_overwrite_replaces_the_package_and_nothing_else(shared, capsys):
    code, file = shared.export("model.mlpackage")
    assert code == 2 and "already exists; set export.overwrite=true" in capsys.readouterr().err
    (shared.folder / "mine.mlpackage").mkdir()
    code, _ = shared.export("mine.mlpackage", "export.overwrite=true")
    assert code == 2 and "is a directory; expected a file" in capsys.readouterr().err
    code, file = shared.export("model.mlpackage", "export.overwrite=true", "export.notes=123")
    assert code == 0 and read(file).description["notes"] == "123"
    assert [entry.name for entry in shared.folder.iterdir() if entry.name.startswith(".")] == []


@pytest.mark.parametrize("masks", [False, True])
def test_an_rfdetr_is_verified_too(masks, export_rfdetr):
    _, _, (row,) = export_rfdetr("coreml", masks=masks)
    assert row["score"] < 1e-4 and row["box"] < 1e-4 and row["mask"] < 1e-4 and row["unmatched"] == 0


def test_evaluate_says_where_packages_run(shared, capsys, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    for command in ("evaluate", "inference"):
        assert shared.run(command, f"{command}.checkpoint={shared.file}") == 2
        error = " ".join(capsys.readouterr().err.split())
        assert "run on macOS, iOS and iPadOS only. On this system, use the checkpoint, or export it to ONNX" in error


class TestBadFiles:
    @pytest.fixture
    def copy(self, shared, tmp_path):
        shutil.copytree(shared.file, tmp_path / "model.mlpackage")
        return tmp_path / "model.mlpackage"

    def test_a_truncated_program(self, copy):
        program = copy / PROGRAM
        program.write_bytes(program.read_bytes()[:5000])
        with pytest.raises(CheckpointError, match="is not a Core ML package"):
            read(copy)

    def test_a_program_that_is_no_detector(self, copy):
        program = copy / PROGRAM
        program.write_bytes(program.read_bytes().replace(b"pred_boxes", b"other_name"))
        with pytest.raises(CheckpointError, match="other_name"):
            read(copy)
