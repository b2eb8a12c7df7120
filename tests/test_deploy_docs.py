"""The examples in docs/deploy.md work with a model that is exported as described."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from rtdetr_tool import cli
from rtdetr_tool.spec import load_spec, read_spec, spec_from_dict
from rtdetr_tool.spec.commands import WITH_SPEC

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


COMMANDS = [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[1:2] + words[-1:]))
def test_a_command_parses_and_its_spec_is_valid(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert words[0] == "rtdetr"
    options = cli.build_command_parser(words[1]).parse_intermixed_args(words[2:])
    if words[1] in WITH_SPEC:
        read_spec(options.experiment_spec_file, options.overrides, words[1])


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """The demo's model, untrained, exported with post-processing and side files."""
    from rtdetr_tool.checkpoints.io import save_checkpoint
    from rtdetr_tool.checkpoints.metadata import build_metadata
    from rtdetr_tool.models.build import build_detector
    from rtdetr_tool.spec import spec_to_dict

    folder = tmp_path_factory.mktemp("deploy")
    spec = load_spec(str(ROOT / "specs" / "demo.yaml"))
    torch.manual_seed(0)
    detector = build_detector(spec.model, spec.dataset.num_classes)
    with torch.no_grad():
        detector.decoder.dec_score_head[-1].bias.fill_(2.0)  # scores above 0.5, so that something is printed
    weights = {f"model.model.{name}": tensor for name, tensor in detector.state_dict().items()}
    names = ["disc", "square", "triangle", "star", "ring"]
    classes = [{"index": index, "id": index + 1, "name": name} for index, name in enumerate(names)]
    meta = build_metadata("test", spec_to_dict(spec), classes)
    save_checkpoint({"state_dict": weights, "rtdetr_tool": meta}, folder / "model.pth")
    options = [f"checkpoint={folder / 'model.pth'}", f"onnx_file={folder / 'model.onnx'}", "include_postprocess=true",
               "serialize_nvdsinfer=true"]  # fmt: skip
    spec_file = str(ROOT / "specs" / "demo.yaml")
    overrides = [f"export.{option}" for option in options]
    assert cli.main(["export", "-e", spec_file, "-r", str(folder / "results"), *overrides]) == 0
    return folder


def test_the_onnxruntime_script_runs_without_the_package(exported, tmp_path):
    script, _ = blocks("python")
    assert "rtdetr_tool" not in script
    (tmp_path / "detect.py").write_text(script)
    Image.effect_mandelbrot((200, 120), (-2, -1, 1, 1), 50).convert("RGB").save(tmp_path / "image.png")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "detect.py", str(exported / "model.onnx"), "image.png"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == 60
    for line in lines:
        name, score, box = re.fullmatch(r"(\w+) ([\d.]+) \[(.*)\]", line).groups()
        assert name in ("disc", "square", "triangle", "star", "ring") and float(score) >= 0.5
        x1, y1, x2, y2 = map(float, box.split(", "))
        assert 0 <= x1 <= x2 <= 200 and 0 <= y1 <= y2 <= 120


@pytest.mark.slow
def test_the_script_for_rf_detrs_layout_runs_without_the_package(exported, tmp_path):
    _, script = blocks("python")
    assert "rtdetr_tool" not in script
    file, options = tmp_path / "model.onnx", ["export.layout=rfdetr", f"export.checkpoint={exported / 'model.pth'}"]
    command = ["export", "-e", str(ROOT / "specs" / "demo.yaml"), "-r", str(tmp_path), f"export.onnx_file={file}"]
    assert cli.main([*command, *options]) == 0
    (tmp_path / "detect.py").write_text(script)
    Image.effect_mandelbrot((200, 120), (-2, -1, 1, 1), 50).convert("RGB").save(tmp_path / "image.png")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "detect.py", str(file), "image.png"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    names = [line.split()[0] for line in run.stdout.splitlines()]
    assert len(names) > 60 and set(names) <= {"disc", "square", "triangle", "star", "ring"}, "several classes per query"


def test_tritons_configuration_is_the_one_that_the_command_writes(exported, tmp_path):
    (config,) = blocks("protobuf")
    command = ["triton", str(exported / "model.onnx"), str(tmp_path), "--name", "rtdetr", "--max-batch", "8"]
    assert cli.main(command) == 0
    written = (tmp_path / "rtdetr" / "config.pbtxt").read_text().splitlines()
    stated = config.splitlines()
    assert stated == [line for line in written if line in stated] and len(stated) == 10
    omitted = [line.split('"')[1] for line in written if line not in stated]
    assert omitted == ["pred_logits", "pred_boxes", "names", "preserve_aspect_ratio", "normalisation", "rtdetr_version"]


def test_deepstreams_files_are_where_its_configuration_says(exported):
    app, engine, *_ = (yaml.safe_load(block) for block in blocks("yaml"))
    assert app["primary-gie"]["config-file"] == "nvdsinfer_config.yaml"
    config = yaml.safe_load((exported / "nvdsinfer_config.yaml").read_text())
    assert (exported / config["property"]["onnx-file"]).exists()
    labels = (exported / config["property"]["labelfile-path"]).read_text().splitlines()
    assert labels == ["disc", "square", "triangle", "star", "ring"]
    assert set(engine["property"]) == {"model-engine-file", "network-mode"}
    assert "NvDsInferParseCustomDDETRTAO" in TEXT


def test_the_example_of_single_layers_is_a_valid_spec():
    from rtdetr_tool.formats.precision import parse_layers_precision

    spec = spec_from_dict(yaml.safe_load(blocks("yaml")[-1]))
    rules = parse_layers_precision(spec.gen_trt_engine.tensorrt.layers_precision)
    assert rules.match("/detector/backbone/conv1/Conv", "Conv").precision == "fp32"
    assert rules.match("/detector/encoder/Softmax", "Softmax").precision == "fp16"


def test_every_field_named_exists():
    from rtdetr_tool.spec.schema import walk_fields

    known = {name for name, _, _ in walk_fields()}
    named = set(re.findall(r"`((?:export|evaluate|inference|gen_trt_engine|model)\.[a-z_.]+)", TEXT))
    assert len(named) > 8
    assert named - known == {
        "export.json",
        "model.bin",
        "model.engine",
        "model.engine.json",
        "model.mlpackage",
        "model.xml",
    }, "files, all others are fields"


def test_the_table_of_formats_has_every_format_and_precision():
    from rtdetr_tool.formats.table import FORMATS

    text = TEXT.split("<!-- formats: written by scripts/bench_formats.py -->")[1].split("<!-- end of formats -->")[0]
    rows = {tuple(cell.strip(" `") for cell in line.split("|")[1:4]) for line in text.splitlines() if line[:1] == "|"}
    expected = {(row.title, row.suffix, each) for row in FORMATS.values() if row.exported for each in row.precisions}
    assert expected <= rows and {row[0] for row in rows} >= {row.title for row in FORMATS.values()}
