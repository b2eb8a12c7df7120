"""The script that measures a checkpoint in every format."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("bench_formats", ROOT / "scripts" / "bench_formats.py")
    sys.modules["bench_formats"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(**values):
    measured = {"megabytes": 60.06, "difference": "score 1e-06, box 4e-07", "map": 0.5, "map50": 0.7}
    measured |= {"dataset": "demo", "format": "onnx", "precision": "FP32", "batch": "dynamic", "milliseconds": 12.34}
    return {**measured, **values}


def test_the_table_has_a_line_per_format_and_precision_and_a_column_per_dataset(script):
    engine = row(format="tensorrt", map=None, map50=None, milliseconds=None, difference="")
    rows = [row(format="mnn", map=0.4), row(), row(dataset="BCCD", map=0.25), engine]
    content = {
        "rows": rows,
        "machine": "A CPU, 1 thread.",
        "runs": {"demo": "demo: 1 epoch.", "BCCD": "BCCD: 2 epochs."},
    }
    lines = script.table(content).splitlines()
    assert lines[0].endswith("| mAP, demo | mAP, BCCD | CPU ms | limits |")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:5]]
    assert cells[0] == [
        "ONNX",
        "`.onnx`",
        "FP32",
        "dynamic",
        "60.1",
        "score 1e-06, box 4e-07",
        "0.5000",
        "0.2500",
        "12.3",
        "–",
    ]
    assert cells[1][:3] == ["MNN", "`.mnn`", "FP32"] and cells[1][6:8] == ["0.4000", "–"]
    assert cells[2][0] == "TensorRT engine" and cells[2][6:9] == ["–", "–", "–"] and "not run" in cells[2][9]
    assert lines[-5:] == ["", "A CPU, 1 thread.", "", "demo: 1 epoch.", "BCCD: 2 epochs."]


def test_writing_replaces_only_what_is_between_the_marks(script, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{script.START}\n\nold\n\n{script.END}\n\nafter\n")
    script.write({"rows": [row()], "machine": "A CPU.", "runs": {}}, page)
    text = page.read_text()
    assert text.startswith(f"before\n\n{script.START}\n\n| format |") and text.endswith(f"{script.END}\n\nafter\n")
    assert "old" not in text


def test_every_format_states_its_limits(script):
    assert set(script.LIMITS) == set(script.FORMATS)
