"""The script that measures the time of evaluate beyond the model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_evaluate.py"


@pytest.mark.slow
def test_the_steps_of_an_evaluation_add_up(tmp_path) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "images" / "1.png")
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": 64, "height": 48}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 20, 20], "area": 400, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "labels.json").write_text(json.dumps(content))
    command = [sys.executable, SCRIPT, tmp_path / "images", tmp_path / "labels.json", "--size", "64"]
    text = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout
    rows = {name: float(share) for name, share in re.findall(r"^\| (.+?) \| [\d.]+ \| ([\d.]+) % \|$", text, re.M)}
    assert {"decode and resize", "model", "metrics", "predictions.json", "report"} <= set(rows)
    beyond = rows.pop("beyond the model")
    assert sum(rows.values()) == pytest.approx(100, abs=1) and beyond == pytest.approx(100 - rows["model"], abs=0.2)
    assert text.startswith("1 images, ") and "start-up: " in text
