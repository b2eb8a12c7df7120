"""Missing input files are reported before torch is imported, for every command and every field with a path."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from rtdetr_tool.spec.commands import COMMANDS
from rtdetr_tool.spec.queries import names_with

# Field -> overrides with which a command reads it; `None`: the weights of a teacher's parts, read after its checkpoint.
_NEEDED: dict[str, list[str] | None] = {
    "dataset.dataset_dir": ["dataset.train_data_sources=null", "dataset.val_data_sources=null"],
    "export.tflite.calibration": ["export.format=tflite", "export.tflite.data_type=INT8"],
    "export.openvino.calibration": ["export.format=openvino", "export.openvino.data_type=INT8"],
    "export.executorch.calibration": ["export.format=executorch", "export.executorch.data_type=INT8"],
    "gen_trt_engine.tensorrt.calibration.cal_image_dir": ["gen_trt_engine.tensorrt.data_type=INT8"],
    "model.frozen_fm.checkpoint": ["model.frozen_fm.enabled=true"],
    "distill.teacher.pretrained_backbone_path": None,
    "distill.teacher.frozen_fm.checkpoint": None,
}
_LISTS = ("gen_trt_engine.tensorrt.calibration.cal_image_dir",)


def cases() -> list[tuple[str, str, list[str]]]:
    """(command, field, overrides) of every field that names an input."""
    result = []
    for field in names_with("path", "read"):
        needed = _NEEDED.get(field, [])
        section = field.partition(".")[0]
        commands = {"model": ["train", "distill"], "dataset": ["train", "distill"], "train": ["train", "distill"]}
        for command in commands.get(section, [section]) if needed is not None else []:
            result.append((command, field, needed))
    for command, split in [("evaluate", "test"), ("train", "val"), ("automl", "train"), ("inference", "infer")]:
        result.append((command, f"dataset.{split}_data_sources", []))
    return result


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> dict[str, tuple[int, str]]:
    """Exit code and message of every case, all in one process, which ends with an error if torch was imported."""
    folder = tmp_path_factory.mktemp("missing")
    (folder / "images").mkdir()
    for name in ("there.json", "there.pth", "there.onnx"):
        (folder / name).write_text("{}")
    labeled = {"image_dir": str(folder / "images"), "json_file": str(folder / "there.json")}
    spec = {
        "dataset": {
            "train_data_sources": [labeled],
            "val_data_sources": labeled,
            "test_data_sources": labeled,
            "infer_data_sources": {"image_dir": [str(folder / "images")]},
            "num_classes": 3,
        },
        "evaluate": {"checkpoint": str(folder / "there.pth")},
        "inference": {"checkpoint": str(folder / "there.pth")},
        "export": {"checkpoint": str(folder / "there.pth"), "onnx_file": str(folder / "new.onnx")},
        "benchmark": {"checkpoint": str(folder / "there.pth")},
        "serve": {"checkpoint": str(folder / "there.pth")},
        "gen_trt_engine": {"onnx_file": str(folder / "there.onnx"), "trt_engine": str(folder / "new.engine")},
        "quantize": {"model_path": str(folder / "there.pth")},
        "distill": {
            "pretrained_teacher_model_path": str(folder / "there.pth"),
            "bindings": [
                {"teacher_module_name": "backbone", "student_module_name": "backbone", "criterion": "L2"},
            ],
        },
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    calls = []
    for number, (command, field, needed) in enumerate(cases()):
        value = "/nowhere/missing.pth"
        if field.endswith("_sources"):
            form = (
                "{image_dir: /nowhere/missing.pth}"
                if "infer" in field
                else (f"{{image_dir: /nowhere/missing.pth, json_file: {folder / 'there.json'}}}")
            )
            value = f"[{form}]" if "train" in field else form
        override = f"{field}=[{value}]" if field in _LISTS else f"{field}={value}"
        calls.append([command, "-e", str(folder / "spec.json"), "-r", str(folder / str(number)), override, *needed])
    calls += [
        ["convert", "/nowhere/missing.pth", str(folder / "new.pth")],
        ["init", "/nowhere/missing.pth", "-o", str(folder / "new.yaml")],
        ["report", "/nowhere/missing.pth", "-o", str(folder / "report")],
    ]
    program = (
        "import contextlib, io, json, sys\n"
        "from rtdetr_tool.cli import main\n"
        "results = []\n"
        "for call in json.load(sys.stdin):\n"
        "    with contextlib.redirect_stderr(io.StringIO()) as text:\n"
        "        code = main(call)\n"
        "    results.append((code, text.getvalue()))\n"
        "print(json.dumps(results))\n"
        "sys.exit(3 if 'torch' in sys.modules else 0)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(calls), capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr[-2000:]
    results = json.loads(run.stdout.splitlines()[-1])
    names = [f"{command} {field}" for command, field, _ in cases()] + ["convert", "init", "report"]
    return {name: tuple(result) for name, result in zip(names, results, strict=True)}


@pytest.mark.parametrize(("command", "field"), [(command, field) for command, field, _ in cases()])
def test_a_missing_input_is_reported_with_its_field_before_torch_is_imported(reported, command, field) -> None:
    code, text = reported[f"{command} {field}"]
    assert code == 2
    source = "dataset.train_data_sources[0].dataset_dir" if field == "dataset.dataset_dir" else field
    assert source in text and "/nowhere/missing.pth does not exist" in text


@pytest.mark.parametrize("command", ["convert", "init", "report"])
def test_a_missing_argument_is_reported_before_torch_is_imported(reported, command) -> None:
    code, text = reported[command]
    assert code == 2 and "/nowhere/missing.pth does not exist" in text


def test_every_command_with_a_spec_that_reads_weights_is_covered() -> None:
    covered = {command for command, _, _ in cases()}
    assert set(COMMANDS) - covered == {
        name for name, row in COMMANDS.items() if not row.has_spec or name == "validate_data"
    }
