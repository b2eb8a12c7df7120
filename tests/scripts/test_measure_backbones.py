"""The table of backbones from the script and in the documentation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rtdetr_tool.catalog import BACKBONES

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "measure_backbones.py"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


@pytest.mark.slow
def test_a_backbone_is_measured_once_and_its_row_comes_from_the_lines_after_that(tmp_path):
    lines = tmp_path / "lines.jsonl"
    command = [sys.executable, str(SCRIPT), "efficientvit_b0", "--size", "64", "--steps", "1", "--lines", str(lines)]
    subprocess.run(command, check=True, capture_output=True)
    (kept,) = map(json.loads, lines.read_text().splitlines())
    assert kept["parameters"] == 683_056 and kept["channels"] == [32, 64, 128] and kept["strides"] == [8, 16, 32]
    assert 0 <= kept["onnx"] < 1e-4 and kept["seconds"] > 0
    lines.write_text(json.dumps({**kept, "seconds": 7.0, "onnx": 2e-6}) + "\n")
    table = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert cells(table[-1]) == [
        "efficientvit_b0", "0.68", "32, 64, 128", "7.0", "2e-06", "timm/efficientvit_b0.r224_in1k", "Apache-2.0",
    ]  # fmt: skip


@pytest.mark.parametrize("name", BACKBONES)
def test_the_page_has_every_row_of_the_catalog(name):
    row = BACKBONES[name]
    page = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8").splitlines()
    (line,) = [cells(line) for line in page if line.startswith(f"| {name} |")]
    assert line[1] == f"{row.parameters / 1e6:.2f}" and line[2] == ", ".join(map(str, row.channels[1:]))
    assert line[5:] == [row.weights or "-", row.license or "-"]
