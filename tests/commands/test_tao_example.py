"""The example of TAO's documentation, at 640 px, in every command.

The spec is extracted from TAO's documentation, if that is next to the checkout. Paths are replaced, and the run is
shortened to one epoch of four generated images; `optim` and `augmentation`, which the page shows separately, are moved
into `train` and `dataset`, as in TAO's schema.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from rtdetr_tool.cli import main
from rtdetr_tool.formats.precision.cost import CostMeter, output_difference
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.spec import spec_from_dict

ROOT = Path(__file__).parents[2]
DOCUMENTATION = ROOT.parent / "shared" / "seeds" / "003_de8b6c6c5836832a.txt"
PRECISIONS = ("FP32", "FP16", "INT8")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DOCUMENTATION.exists(), reason="TAO's documentation is not next to the checkout"),
]


def printed_spec() -> dict[str, Any]:
    """Every section of the page: a name at the start of a line, and the indented lines below it."""
    spec: dict[str, Any] = {}
    for block in re.findall(r"^\w+:\n(?:[ -].*\n)+", DOCUMENTATION.read_text(), flags=re.MULTILINE):
        spec.update(yaml.safe_load(block))
    spec["dataset"]["augmentation"] = spec.pop("augmentation")
    assert spec.pop("optim") == spec["train"]["optim"]
    return spec


def with_paths(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    data, checkpoint = folder / "data", str(folder / "results/train/rtdetr_model_latest.pth")

    def source(split: str) -> dict[str, str]:
        return {"image_dir": str(data / split), "json_file": str(data / f"annotations/instances_{split}.json")}

    spec["dataset"] |= {
        "train_data_sources": [source("train")], "val_data_sources": source("val"), "test_data_sources": source("test"),
        "infer_data_sources": {"image_dir": str(data / "test"), "classmap": str(data / "classmap.txt")},
    }  # fmt: skip
    spec["model"]["pretrained_backbone_path"] = str(folder / "resnet50.pth")
    for section in ("evaluate", "inference", "export"):
        spec[section]["checkpoint"] = checkpoint
    spec["export"]["onnx_file"] = str(folder / "model.onnx")
    spec["distill"]["pretrained_teacher_model_path"] = str(folder / "teacher.pth")
    return spec


def write_weights(spec: dict[str, Any], folder: Path) -> None:
    """Write an untrained backbone and teacher with the tensor names of TAO's files."""
    import timm

    torch.manual_seed(0)
    torch.save(timm.create_model("resnet50").state_dict(), folder / "resnet50.pth")
    model = {name: value for name, value in spec["distill"]["teacher"].items() if name != "clip_max_norm"}
    teacher = build_detector(spec_from_dict({"model": model}).model, spec["dataset"]["num_classes"])
    weights = {f"model.model.{name}": tensor for name, tensor in teacher.state_dict().items()}
    torch.save({"state_dict": weights, "tao_model": "rtdetr"}, folder / "teacher.pth")


class Example:
    def __init__(self, folder: Path) -> None:
        self.folder, self.results = folder, folder / "results"
        draw = [sys.executable, ROOT / "scripts/make_sample_dataset.py", folder / "data"]
        subprocess.run([*draw, "--train=4", "--val=2", "--test=2", "--size=640"], check=True)
        spec = with_paths(printed_spec(), folder)
        write_weights(spec, folder)
        self.spec = folder / "spec.yaml"
        self.spec.write_text(yaml.safe_dump(spec, sort_keys=False))

    def run(self, command: str, *overrides: str) -> int:
        return main([command, "-e", str(self.spec), "-r", str(self.results), *overrides])

    def read(self, name: str) -> Any:
        return json.loads((self.results / name).read_text())


SHORTENED = ("train.num_epochs=1", "train.checkpoint_interval=1", "train.validation_interval=1")


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The example after train and export."""
    made = Example(tmp_path_factory.mktemp("tao"))
    assert made.run("train", *SHORTENED) == 0
    assert made.run("export") == 0
    return made


def test_the_export_is_of_the_printed_size_and_operator_set(example):
    import onnx

    graph = onnx.load(example.folder / "model.onnx")
    assert graph.opset_import[0].version == 12
    dims = graph.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 3, 640, 640]


def test_evaluate_and_inference_succeed(example):
    assert example.run("evaluate") == 0
    assert set(example.read("evaluate/results.json")) >= {"mAP", "mAP50"}
    assert example.run("inference") == 0
    assert len(list((example.results / "inference/images_annotated").iterdir())) == 2


def build(example, precision: str, *overrides: str) -> Path:
    engine = example.folder / f"{precision}.engine"
    code = example.run(
        "gen_trt_engine", f"gen_trt_engine.onnx_file={example.folder / 'model.onnx'}",
        f"gen_trt_engine.trt_engine={engine}", f"gen_trt_engine.tensorrt.data_type={precision}",
        "gen_trt_engine.compute_capability=[SM89]", *overrides,
    )  # fmt: skip
    assert code == 0
    return engine


def costs(example) -> tuple[dict[str, float], float]:
    """Changes of the detections by FP16 and INT8 (0..1), and the difference between two test images."""
    import onnx

    images = [Image.open(file).convert("RGB") for file in sorted((example.folder / "data/test").iterdir())]
    feeds = [np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255 for image in images]
    meter = CostMeter(onnx.load(example.folder / "model.onnx"), feeds)
    graphs = {name: example.results / f"gen_trt_engine/model_{name.lower()}.onnx" for name in PRECISIONS[1:]}
    return (
        {name: meter.cost(onnx.load(file)) for name, file in graphs.items()},
        output_difference(*meter.reference),
    )


def test_every_precision_becomes_an_engine_that_detects_the_same(example):
    """Compare sets of detections: after one epoch, the scores of all queries differ by less than 0.003.

    Rounding changes their order, and therefore mAP.
    """
    pytest.importorskip("tensorrt_rtx")
    for precision in PRECISIONS[:2]:
        assert build(example, precision, "gen_trt_engine.score_images=0").stat().st_size > 10**7
    assert build(example, "INT8", "gen_trt_engine.max_score_drop=1").stat().st_size > 10**7
    report = example.read("gen_trt_engine/precision.json")
    assert all(0 <= report["scores"][name]["mAP"] <= 1 for name in PRECISIONS)
    cost, between_images = costs(example)
    assert between_images > 0.2
    assert cost["FP16"] < 0.1 * between_images and cost["INT8"] < 0.4 * between_images, (cost, between_images)
    indices = [node for node in report["fp16"]["kept"] if node["reason"].startswith("role: index")]
    assert len(indices) > 100 and max(node["max_abs"] or 0 for node in indices) == 6399  # of 80 x 80 pixels
    assert report["audit"]["cost_mixed"] < 0.05


def test_distill_learns_from_the_printed_teacher(example):
    assert example.run("distill", *SHORTENED) == 0
    assert (example.results / "distill/rtdetr_model_latest.pth").exists()
