"""The commands on gray and multispectral images: train, evaluate, inference, export, calibrate, validate, refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from rtdetr_tool.checkpoints.detector_file import read_detector
from rtdetr_tool.cli import main
from rtdetr_tool.formats.table import FORMATS

tifffile = pytest.importorskip("tifffile", reason="requires tifffile")
SUFFIX = {1: ".png", 5: ".tif"}


@pytest.fixture(params=[1, 5])
def spectral(project, request):
    """The project with images of one channel (PNG) or five bands with 16 bits (TIFF)."""
    channels = request.param
    rng = np.random.default_rng(0)
    for entry in project.coco["images"]:
        project.image(entry["id"]).unlink()
        entry["file_name"] = f"{entry['id']}{SUFFIX[channels]}"
        path = project.folder / "images" / entry["file_name"]
        if channels == 1:
            Image.fromarray(rng.integers(0, 255, (48, 64), dtype=np.uint8)).save(path)
        else:
            bands = rng.integers(0, 4000, (48, 64, 5), dtype=np.uint16)
            tifffile.imwrite(path, bands, photometric="minisblack", planarconfig="contig")
    project.spec["model"]["num_channels"] = project.channels = channels
    project.spec["dataset"]["value_range"] = None if channels == 1 else [0.0, 4000.0]
    project.write()
    return project


def results(project, name: str):
    return json.loads((project.folder / "results" / name).read_text())


def test_a_trained_file_and_its_graph_have_the_channels_and_equal_scores(spectral):
    run = ["train.is_dry_run=false", "train.num_epochs=1", "train.checkpoint_interval=1", "train.precision=fp32"]
    assert spectral.run("train", *run) == 0
    checkpoint = spectral.folder / "results/train/rtdetr_model_best.pth"
    file = read_detector(checkpoint)
    assert file.weights["backbone.conv1.0.weight"].shape[1] == spectral.channels
    assert file.meta["spec"]["model"]["num_channels"] == spectral.channels
    checkpoint = spectral.checkpoint(lively=True)
    del spectral.spec["model"], spectral.spec["dataset"]["value_range"]  # both are recorded
    spectral.write()
    assert spectral.run("evaluate", f"evaluate.checkpoint={checkpoint}") == 0
    spectral.label_best_detections()
    found, stats = [], []
    graph = spectral.folder / "model.onnx"
    assert spectral.run("export", f"export.checkpoint={checkpoint}", f"export.onnx_file={graph}") == 0
    for path in (checkpoint, graph):
        assert spectral.run("evaluate", f"evaluate.checkpoint={path}") == 0
        found.append(sorted(row["score"] for row in results(spectral, "evaluate/predictions.json")))
        stats.append(results(spectral, "evaluate/results.json")["mAP"])
    assert found[0] == pytest.approx(found[1], abs=1e-5) and len(found[0]) > 0
    assert stats[0] == pytest.approx(stats[1], abs=1e-3) and stats[0] > 0
    assert spectral.run("inference", f"inference.checkpoint={graph}", "inference.conf_threshold=0.0") == 0
    drawn = sorted((spectral.folder / "results/inference/images_annotated").iterdir())
    assert len(drawn) == 6 and {Image.open(path).mode for path in drawn} == {"RGB"}


def test_a_contradiction_of_channels_is_one_message(spectral, capsys):
    checkpoint = spectral.checkpoint()
    other = spectral.channels + 1
    assert spectral.run("evaluate", f"evaluate.checkpoint={checkpoint}", f"model.num_channels={other}") == 2
    assert f"model.num_channels is {other} in the spec, but {spectral.channels} in the checkpoint" in (
        capsys.readouterr().err
    )
    payload = torch.load(checkpoint, weights_only=False)
    payload["rtdetr_tool"]["spec"]["model"]["num_channels"] = 3
    torch.save(payload, spectral.folder / "forged.pth")
    del spectral.spec["model"]["num_channels"]
    spectral.write()
    assert spectral.run("evaluate", f"evaluate.checkpoint={spectral.folder / 'forged.pth'}") == 2
    assert f"is for {spectral.channels} channels in the file, but for 3 (model.num_channels)" in capsys.readouterr().err


def test_rgb_images_are_refused_by_every_command(spectral, capsys):
    name = spectral.coco["images"][0]["file_name"]
    Image.new("RGB", (64, 48)).save(spectral.folder / "images" / "rgb.png")
    spectral.coco["images"][0]["file_name"] = "rgb.png"
    spectral.write()
    checkpoint = spectral.checkpoint()
    for command, *arguments in (
        ("train", "train.is_dry_run=false"),
        ("evaluate", f"evaluate.checkpoint={checkpoint}"),
        ("inference", f"inference.checkpoint={checkpoint}"),
        ("validate_data",),
    ):
        assert spectral.run(command, *arguments) == 2, command
        shown = capsys.readouterr().err
        assert "rgb.png has 3 channels" in shown and "Traceback" not in shown, command
    assert (spectral.folder / "images" / name).exists()


def test_the_data_is_validated_and_drawn(spectral):
    assert spectral.run("validate_data") == 0
    page = (spectral.folder / "results/validate_data/report.html").read_text()
    assert page.count("data:image/jpeg") >= 4


def test_other_programs_have_no_such_files(spectral, capsys):
    target = spectral.folder / "official.pth"
    assert main(["convert", str(spectral.checkpoint()), str(target), "--to", "official"]) == 2
    assert f"model.num_channels is {spectral.channels}" in capsys.readouterr().err and not target.exists()


def test_rgb_weights_start_a_run_with_other_channels(project, capsys):
    checkpoint = project.checkpoint()
    for entry in project.coco["images"]:
        Image.open(project.image(entry["id"])).convert("L").save(project.image(entry["id"]))
    run = [f"train.pretrained_model_path={checkpoint}", "model.num_channels=1"]
    assert project.run("train", *run) == 0
    assert "Adapted backbone.conv1.0.weight from 3 to 1 channels" in "".join(capsys.readouterr())


def test_a_file_without_metadata_has_the_channels_of_its_graph(project, capsys):
    """A graph of another program: its input decides, and a contradiction is one message."""
    import onnx

    for entry in project.coco["images"]:
        Image.open(project.image(entry["id"])).convert("L").save(project.image(entry["id"]))
    project.spec["model"]["num_channels"] = 1
    project.write()
    graph = project.folder / "model.onnx"
    assert project.run("export", f"export.checkpoint={project.checkpoint()}", f"export.onnx_file={graph}") == 0
    model = onnx.load(graph)
    assert model.graph.input[0].type.tensor_type.shape.dim[1].dim_value == 1
    del model.metadata_props[:]
    onnx.save(model, graph)
    del project.spec["model"]
    project.write()
    assert project.run("evaluate", f"evaluate.checkpoint={graph}") == 0
    assert project.run("evaluate", f"evaluate.checkpoint={graph}", "model.num_channels=3") == 2
    assert "supports images with 1 channels, but was opened with model.num_channels 3" in capsys.readouterr().err


def test_a_teacher_has_the_same_channels_as_its_student(project, capsys):
    project.spec["distill"] = {
        "teacher": dict(project.spec["model"]), "pretrained_teacher_model_path": str(project.checkpoint()),
        "bindings": [{"teacher_module_name": "srcs", "student_module_name": "srcs", "criterion": "L2", "weight": 1.0}],
    }  # fmt: skip
    for entry in project.coco["images"]:
        Image.open(project.image(entry["id"])).convert("L").save(project.image(entry["id"]))
    project.spec["model"]["num_channels"] = 1
    project.write()
    assert project.run("distill") == 2
    assert "The teacher has images with 3 channels, but model.num_channels is 1" in capsys.readouterr().err


@pytest.mark.slow
def test_openvino_and_the_benchmark_use_images_with_all_bands(spectral):
    pytest.importorskip("openvino", reason="requires openvino")
    checkpoint, target = spectral.checkpoint(lively=True), spectral.folder / "model.xml"
    export = [f"export.checkpoint={checkpoint}", f"export.onnx_file={target}", "export.format=openvino"]
    assert spectral.run("export", *export) == 0
    assert spectral.run("evaluate", f"evaluate.checkpoint={target}") == 0
    run = ["benchmark.seconds=0.1", "benchmark.warmup=1", "benchmark.runtimes=[torch]", "benchmark.score=false"]
    assert spectral.run("benchmark", f"benchmark.checkpoint={checkpoint}", *run) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "name"), [("litert_torch", "tflite"), ("MNN", "mnn"), ("executorch", "executorch")]
)
def test_files_of_optional_formats_have_the_channels_and_equal_scores(package, name, spectral):
    pytest.importorskip(package, reason=f"requires {package}")
    checkpoint, target = spectral.checkpoint(lively=True), spectral.folder / f"model{FORMATS[name].suffix}"
    assert spectral.run("evaluate", f"evaluate.checkpoint={checkpoint}") == 0
    spectral.label_best_detections()
    export = [f"export.checkpoint={checkpoint}", f"export.onnx_file={target}", f"export.format={name}"]
    assert spectral.run("export", *export) == 0
    scores = []
    for path in (checkpoint, target):
        assert spectral.run("evaluate", f"evaluate.checkpoint={path}") == 0
        scores.append(results(spectral, "evaluate/results.json")["mAP"])
    assert scores[0] == pytest.approx(scores[1], abs=1e-3) and scores[0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["FP32", "FP16", "INT8"])
def test_engines_have_the_channels(precision, spectral):
    pytest.importorskip("tensorrt_rtx", reason="requires tensorrt-rtx")
    graph, engine = spectral.folder / "model.onnx", spectral.folder / "model.engine"
    export = [f"export.checkpoint={spectral.checkpoint(lively=True)}", f"export.onnx_file={graph}"]
    assert spectral.run("export", *export, "export.opset_version=19") == 0
    images = spectral.folder / "images"
    build = [f"onnx_file={graph}", f"trt_engine={engine}", f"tensorrt.data_type={precision}", "backend=tensorrt_rtx"]
    build += ["compute_capability=[SM89]"]
    build += [f"tensorrt.calibration.cal_image_dir=[{images}]", "tensorrt.calibration.cal_batches=4"]
    build += [f"tensorrt.calibration.cal_cache_file={spectral.folder / 'cache.json'}", "max_score_drop=1.0"]
    assert spectral.run("gen_trt_engine", *(f"gen_trt_engine.{setting}" for setting in build)) == 0
    described = json.loads((spectral.folder / "model.engine.json").read_text())
    assert described["rtdetr_tool"]["spec"]["model"]["num_channels"] == spectral.channels
    assert f"{spectral.channels} channel" in described["normalisation"]
    assert engine.stat().st_size > 10_000


@pytest.mark.slow
def test_calibration_images_have_all_bands(spectral):
    checkpoint = spectral.checkpoint(lively=True)
    quantize = [f"quantize.model_path={checkpoint}", "quantize.mode=static_ptq", "quantize.max_score_drop=1.0"]
    quantize += ["quantize.backend=modelopt.onnx", "quantize.algorithm=minmax"]
    assert spectral.run("quantize", *quantize) == 0
    path = spectral.folder / "results/quantize/quantized_model.onnx"
    assert spectral.run("evaluate", f"evaluate.checkpoint={path}") == 0
