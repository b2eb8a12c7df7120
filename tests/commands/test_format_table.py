"""scripts/bench_formats.py on a checkpoint: what it measures of weights and of OpenVINO files."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("openvino", reason="requires openvino")
SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_formats.py"


@pytest.mark.slow
def test_weights_and_their_openvino_files_are_scored(project, monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_formats", SCRIPT)
    sys.modules["bench_formats"] = script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    checkpoint, rows = project.checkpoint(lively=True), project.folder / "rows.json"
    command = ["bench_formats.py", "measure", rows, "--name", "tiny", "-e", project.spec_file, "--steps", "1"]
    command += ["--checkpoint", checkpoint, "--only", "torch", "--only", "openvino"]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    script.main()
    content = json.loads(rows.read_text())
    found = {(each["format"], each["precision"]): each for each in content["rows"]}
    precisions = script.FORMATS["openvino"].precisions
    assert set(found) == {("torch", "FP32"), ("torch", "BF16"), *(("openvino", each) for each in precisions)}
    assert found["openvino", "FP32"]["map"] == pytest.approx(found["torch", "FP32"]["map"], abs=1e-4)
    assert found["openvino", "FP16"]["megabytes"] < found["openvino", "FP32"]["megabytes"]
    assert all(each["milliseconds"] > 0 for each in content["rows"])
    assert re.search(r"1 thread.*torch \d", content["machine"])
