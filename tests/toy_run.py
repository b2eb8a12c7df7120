"""A small project in a process of its own, for tests that add a row to a table before the spec is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent

SETUP = """
import json
import sys

from toy_run import open_project

project, weights = open_project(sys.argv[1], MODEL)
folder, results = project.folder, {}
"""
FINISH = """
(folder / "results.json").write_text(json.dumps(results))
"""


def run_with_row(
    row: str, program: str, folder: Path, model: dict[str, Any] | None = None
) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    """Run `row`, which adds to a table, then `program`, which knows `project`, `weights` and fills `results`."""
    source = "".join([row, SETUP.replace("MODEL", repr(model)), program, FINISH])
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    command = [sys.executable, "-c", source, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, cwd=folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "results.json").read_text()), done


def open_project(folder: str, model: dict[str, Any] | None) -> tuple[Any, Path]:
    """A project that trains a single step, and the path of the weights that `train` writes."""
    from commands.conftest import Project  # imports the spec

    project = Project(Path(folder))
    if model is not None:
        project.spec["model"] = model
    project.spec["train"] = {"accelerator": "cpu", "num_epochs": 1, "enable_ema": False}
    project.spec["dataset"]["batch_size"] = 6  # one step
    project.write()
    return project, Path(folder) / "results/train/rtdetr_model_latest.pth"


def evaluate(project: Any, name: str, checkpoint: Path) -> tuple[int, list[Any], float]:
    """Exit code, predictions and mAP50 of `evaluate` on a checkpoint."""
    folder = project.folder / name
    code = project.run("evaluate", f"evaluate.results_dir={folder}", f"evaluate.checkpoint={checkpoint}")
    lines = [json.loads(line) for line in (folder / "status.json").read_text().splitlines()]
    scores = [line["kpi"] for line in lines if line.get("kpi")]
    return code, json.loads((folder / "predictions.json").read_text()), scores[-1]["test_mAP50"]
