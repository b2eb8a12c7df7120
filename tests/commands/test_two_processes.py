"""The commands with two processes (gloo on the CPU), started from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


def run(project, command: str, results: str, *overrides: str) -> None:
    """A separate process, so that Lightning can start the second one from the same command line."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    arguments = [command, "-e", str(project.spec_file), "-r", str(project.folder / results), *overrides]
    done = subprocess.run(
        [sys.executable, "-m", "rtdetr_tool", *arguments],
        env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_evaluate_has_the_same_scores_and_counts_every_image_once(project):
    project.coco["images"].pop()  # five images, so that the processes have different shares
    project.coco["annotations"].pop()
    project.write()
    weights = f"evaluate.checkpoint={project.checkpoint()}"
    run(project, "evaluate", "one", weights)
    run(project, "evaluate", "two", weights, "evaluate.num_gpus=2")

    def read(results: str, file: str):
        return json.loads((project.folder / results / "evaluate" / file).read_text())

    assert read("one", "results.json") == read("two", "results.json")
    key = lambda row: (row["image_id"], -row["score"], row["bbox"])  # noqa: E731
    assert sorted(read("one", "predictions.json"), key=key) == sorted(read("two", "predictions.json"), key=key)
    status = [json.loads(line) for line in (project.folder / "two/evaluate/status.json").read_text().splitlines()]
    assert [line["status"] for line in status].count("SUCCESS") == 1


@pytest.mark.slow
def test_inference_writes_every_image_once(project):
    weights = f"inference.checkpoint={project.checkpoint()}"
    run(project, "inference", "one", weights, "inference.conf_threshold=0")
    run(project, "inference", "two", weights, "inference.conf_threshold=0", "inference.num_gpus=2")
    files = {
        results: {p.name: p.read_bytes() for p in (project.folder / results / "inference").rglob("*.txt")}
        for results in ("one", "two")
    }
    for results in files:
        files[results].pop("log.txt")
    assert len(files["one"]) == 6
    assert files["one"] == files["two"]


@pytest.mark.slow
def test_train_with_two_processes_writes_one_set_of_files(project):
    project.spec["train"] = {"num_epochs": 1, "accelerator": "cpu", "num_gpus": 2, "enable_ema": True}
    project.write()
    run(project, "train", "two")
    folder = project.folder / "two" / "train"
    assert (folder / "model_epoch_000.pth").is_file()
    assert (folder / "model_epoch_000-EMA.pth").is_file()
    status = [json.loads(line) for line in (folder / "status.json").read_text().splitlines()]
    assert status[0]["status"] == "STARTED"
    assert status[-1]["status"] == "SUCCESS"
    assert sum("val_mAP" in line.get("kpi", {}) for line in status) >= 1
