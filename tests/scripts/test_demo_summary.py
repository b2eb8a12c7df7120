"""The last lines of `make demo`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "demo_summary.py"


@pytest.fixture
def results(tmp_path):
    (tmp_path / "evaluate").mkdir()
    (tmp_path / "inference" / "images_annotated").mkdir(parents=True)
    score = {"mAP": 0.5126, "mAP50": 0.7312, "per_class": [{"name": "disc", "AP50": 0.9}, {"name": "x", "AP50": None}]}
    (tmp_path / "evaluate" / "results.json").write_text(json.dumps(score))
    (tmp_path / "inference" / "images_annotated" / "a.jpg").write_bytes(b"-")
    return tmp_path


def run(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True)


def test_it_prints_the_score_each_class_and_where_the_images_are(results):
    done = run(results, "--require", "0.70")
    assert done.returncode == 0, done.stderr
    assert "mAP 0.513, mAP50 0.731" in done.stdout
    assert "disc" in done.stdout and "AP50 0.900" in done.stdout
    assert f"1 annotated images are in {results / 'inference' / 'images_annotated'}" in done.stdout


def test_a_score_below_the_required_one_fails(results):
    done = run(results, "--require", "0.75")
    assert done.returncode == 1
    assert "mAP 0.513" in done.stdout and "below 0.75" in done.stderr


def test_a_demo_without_images_fails(results):
    (results / "inference" / "images_annotated" / "a.jpg").unlink()
    done = run(results)
    assert done.returncode == 1 and "no annotated images" in done.stderr


def test_a_demo_without_a_score_says_what_is_missing(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 1
    assert "results.json" in done.stderr and "Traceback" not in done.stderr
