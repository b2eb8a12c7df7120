"""A new model family is one package and one row: `toy_family`, which the program does not know, in all commands.

The row is added at run time before the spec is imported, so everything runs in a separate process.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_run import run_with_row

pytestmark = pytest.mark.slow  # D-FINE and OpenVINO, which are real, are tested by default

ROW = """
from rtdetr_tool.families import FAMILIES

FAMILIES["toy"] = "toy_family"
"""
MODEL = {"arch": "toy", "num_select": 6, "toy": {"num_queries": 6}}
PROGRAM = """
import torch
from rtdetr_tool import ToyDetr
from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.cli import main
from toy_run import evaluate

graph = folder / "toy.onnx"
results["train"] = project.run("train")
results["torch"] = evaluate(project, "in_torch", weights)
results["export"] = project.run("export", f"export.checkpoint={weights}", f"export.onnx_file={graph}")
results["onnx"] = evaluate(project, "in_onnx", graph)
results["inference"] = project.run("inference", f"inference.checkpoint={weights}")
results["pretrained"] = project.run("train", f"train.pretrained_model_path={weights}", "train.is_dry_run=true")

tensors = {n.removeprefix("model.model."): t for n, t in load_checkpoint(weights)["state_dict"].items()}
parts = {"backbone": "body", "encoder": "neck", "decoder": "head"}
foreign = {f"{parts[n.partition('.')[0]]}.{n.partition('.')[2]}": t for n, t in tensors.items()}
torch.save(foreign, folder / "foreign.pth")
results["convert"] = main(["convert", str(folder / "foreign.pth"), str(folder / "ours.pth")])
results["transformers"] = main(["convert", str(weights), str(folder / "directory"), "--to", "transformers"])

results["api"] = repr(ToyDetr(num_classes=3, num_queries=5))
results["page"] = main(["default_specs", "train"])
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_with_row(ROW, PROGRAM, tmp_path_factory.mktemp("toy"), MODEL)


def test_it_trains_and_starts_from_its_own_weights(run):
    assert run[0]["train"] == run[0]["pretrained"] == 0


def test_it_is_evaluated_in_torch_and_from_its_exported_graph_with_the_same_result(run):
    results, _ = run
    assert results["export"] == 0
    assert results["torch"][0] == results["onnx"][0] == 0
    assert results["onnx"][2] == pytest.approx(results["torch"][2], abs=1e-6)


def test_it_detects_objects_in_a_folder(run):
    assert run[0]["inference"] == 0


def test_the_file_of_another_program_is_recognized_and_converted(run):
    results, done = run
    assert results["convert"] == 0
    assert "a checkpoint of the toy's authors: variant small, 2 classes" in done.stderr


def test_what_the_family_cannot_write_is_an_error_that_names_it(run):
    results, done = run
    assert results["transformers"] == 2
    assert "model.arch toy cannot be written for transformers" in done.stderr


def test_its_class_is_public_and_takes_its_fields(run):
    assert run[0]["api"].startswith("ToyDetr(toy-small, 3 class logits")


def test_its_section_is_in_the_default_spec(run):
    results, done = run
    assert results["page"] == 0
    assert "# Toy-DETR; only read with arch toy.\n  toy:\n    # Which toy. One of: small, large." in done.stdout


def test_the_toy_is_known_nowhere_in_the_package():
    package = Path(__file__).parents[1] / "rtdetr_tool"
    assert [path for path in package.rglob("*.py") if "toy" in path.read_text(encoding="utf-8").lower().split()] == []
