"""A new deployment format is one package and one row: `toy_format`, which the program does not know, in all commands.

The row is added at run time before the spec is imported, so everything runs in a separate process.
"""

from __future__ import annotations

import pytest
from toy_run import run_with_row

pytestmark = pytest.mark.slow  # D-FINE and OpenVINO, which are real, are tested by default

ROW = """
from rtdetr_tool.formats.table import FORMATS, Format, Packages

FORMATS["toy"] = Format("toy", "Toy", (".toy",), "toy_format", exported=True, extra="toys")
missing = Packages(("no_such_package",), 'pip install "rtdetr-tool[toys]"')
FORMATS["needy"] = Format("needy", "Needy", (".needy",), "toy_format", exported=True, to_export=missing)
"""
PROGRAM = """
import numpy as np
from rtdetr_tool import Detector
from rtdetr_tool.cli import main
from toy_run import evaluate

toy = folder / "model.toy"
results["train"] = project.run("train")
export = ["export", f"export.checkpoint={weights}", f"export.onnx_file={folder / 'model.onnx'}"]
results["export"] = project.run(*export, "export.format=toy")
results["report"] = json.loads((folder / "results/export/export.json").read_text())
results["needy"] = project.run(*export, "export.format=needy")
results["topk"] = project.run(*export, "export.format=toy", "export.include_postprocess=true")
results["torch"] = evaluate(project, "in_torch", weights)
results["toy"] = evaluate(project, "in_toy", toy)
results["precision"] = project.run("evaluate", f"evaluate.checkpoint={toy}", "evaluate.precision=bf16")
results["inference"] = project.run("inference", f"inference.checkpoint={toy}")
detector = Detector.from_checkpoint(toy)
results["api"] = [repr(detector), len(detector.predict([np.zeros((64, 64, 3), np.uint8)] * 2, threshold=0.0))]
(folder / "model.caffemodel").write_bytes(b"no model")
results["unknown"] = project.run("evaluate", "evaluate.checkpoint=model.caffemodel")
results["page"] = main(["default_specs", "export"])
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    results, done = run_with_row(ROW, PROGRAM, tmp_path_factory.mktemp("toy"))
    return results, " ".join((done.stdout + done.stderr).split())


def test_export_writes_it_with_its_suffix_and_a_static_batch(run):
    results, _ = run
    assert results["train"] == results["export"] == 0
    assert results["report"]["toy_file"].endswith("model.toy")
    assert results["report"]["batch"] == 1


def test_it_detects_what_the_checkpoint_detects(run):
    results, _ = run
    (code, expected, _), (toy_code, detections, _) = results["torch"], results["toy"]
    assert code == toy_code == 0 and len(detections) == len(expected) > 0
    for one, other in zip(expected, detections, strict=True):
        assert one["image_id"] == other["image_id"]
        assert other["score"] == pytest.approx(one["score"], abs=1e-4)


def test_inference_and_the_python_api_open_it(run):
    results, _ = run
    assert results["inference"] == 0
    assert results["api"][0].endswith("model.toy)") and results["api"][1] == 2


def test_what_it_cannot_do_is_an_error(run):
    results, output = run
    assert results["topk"] == results["precision"] == 2
    assert "export.include_postprocess: requires" in output and "export.format is toy" in output
    assert "precision=bf16 is not supported with" in output


def test_a_missing_package_is_named_with_the_command_that_installs_it(run):
    results, output = run
    assert results["needy"] == 2
    assert 'export.format=needy requires no_such_package: pip install "rtdetr-tool[toys]"' in output


def test_help_and_messages_list_it(run):
    results, output = run
    assert results["unknown"] == 2 and results["page"] == 0
    assert "Toy (.toy), " in output
    assert "toy needs the extra `toys`. One of: onnx, tflite, openvino, coreml, executorch, mnn, toy, needy." in output
    assert "1 for TFLite, Core ML, ExecuTorch, Toy or Needy, which do not support dynamic sizes" in output
