"""A search that is killed resumes where it was, and a process of a trial that is killed is replaced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("optuna")

ROOT = Path(__file__).parents[2]

# Runs `rtdetr` with a signal that arrives at a known point: AT is "search" (when the second trial reports its first
# validation to the search) or "worker" (when the process of the first trial starts it, the first time only).
RUNNER = """
import os, pathlib, signal, sys
from rtdetr_tool.search import loop, trial, worker

number = getattr(signal, os.environ.get("SIGNAL", "SIGKILL"))
mark = pathlib.Path(os.environ["MARK"])
if os.environ["AT"] == "search":
    original = loop.Search._report
    def report(self, trial, score):
        answer = original(self, trial, score)
        if trial.number == 1 and score.validation == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), number)
        return answer
    loop.Search._report = report
if os.environ["AT"] == "worker":
    run = worker.run_trial
    def run_trial(job, *arguments):
        if job.number == 0 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), number)
        return run(job, *arguments)
    worker.run_trial = run_trial

if __name__ == "__main__":
    from rtdetr_tool.cli import main
    sys.exit(main())
"""


@pytest.fixture
def searched(project):
    project.spec["train"] = {"accelerator": "cpu", "num_epochs": 3, "report": False, "tensorboard": False}
    project.spec["dataset"]["batch_size"] = 6
    project.spec["automl"] = {"trials": 2, "fields": ["train.optim.lr"], "pruner": "none"}
    project.write()
    return project


def run(project, at: str, *options: str, number: str = "SIGKILL") -> subprocess.CompletedProcess[str]:
    script = project.folder / "runner.py"
    script.write_text(RUNNER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "AT": at, "SIGNAL": number}
    environment["MARK"] = str(project.folder / "mark")
    command = [sys.executable, str(script), "automl", "-e", str(project.spec_file), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=project.folder)


def content(project) -> list[dict]:
    return json.loads((project.folder / "results" / "automl" / "automl.json").read_text())["trials"]


@pytest.mark.parametrize(("number", "code"), [("SIGKILL", -signal.SIGKILL), ("SIGTERM", 75)])
def test_a_killed_search_keeps_finished_trials_and_resumes_the_running_one(number, code, searched):
    killed = run(searched, "search", number=number)
    assert killed.returncode == code, killed.stderr[-2000:]
    (first,) = [trial for trial in content(searched) if trial["state"] == "finished"]
    folder = searched.folder / "results" / "automl" / "trial_0001"
    assert (folder / "model_epoch_000.pth").is_file() and not (folder / "model_epoch_002.pth").exists()
    assert searched.run("automl") == 0
    again = content(searched)
    assert again[0] == first
    assert [trial["state"] for trial in again] == ["finished", "finished"]
    assert list(again[1]["scores"]) == ["1", "2", "3"]
    log = (folder / "log.txt").read_text()
    assert f"Resuming from {folder}" in log


@pytest.mark.slow
def test_a_process_that_is_killed_is_replaced_and_its_trial_started_again(searched):
    done = run(searched, "worker", "automl.workers=2", "automl.trials=3")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "The process of trial 0 was ended by SIGKILL; the trial is started again" in done.stderr
    assert [trial["state"] for trial in content(searched)] == ["finished"] * 3
    assert (searched.folder / "mark").exists()


@pytest.mark.slow
def test_sigterm_ends_a_search_with_several_processes(searched):
    stopped = run(searched, "search", "automl.workers=2", "automl.trials=4", number="SIGTERM")
    assert stopped.returncode == 75, stopped.stderr[-2000:]
    assert run(searched, "search", "automl.workers=2", "automl.trials=4").returncode == 0
    assert [trial["state"] for trial in content(searched)] == ["finished"] * 4
