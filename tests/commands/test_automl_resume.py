"""A search that is killed resumes where it was, and a process of a trial that is killed is replaced."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("optuna")

ROOT = Path(__file__).parents[2]
PASSWORD = "correct-horse-battery"

# Runs `rtdetr` with a signal that arrives at a known point: AT is "search" (when the second trial reports its first
# validation to the search) or "worker" (when the process of the first trial starts it, the first time only).
RUNNER = """
import os, pathlib, signal, sys
from rtdetr_tool.search import record, trial, worker

number = getattr(signal, os.environ.get("SIGNAL", "SIGKILL"))
mark = pathlib.Path(os.environ["MARK"])
if os.environ["AT"] == "search":
    original = record.StudyRecord.report
    def report(self, trial, score):
        answer = original(self, trial, score)
        if trial.number == 1 and score.validation == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), number)
        return answer
    record.StudyRecord.report = report
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


@pytest.mark.slow
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


@pytest.fixture
def postgres(tmp_path):
    """The URL of a database on a private PostgreSQL server, which ends with the test."""
    programs = [*Path("/usr/lib/postgresql").glob("*/bin"), Path("/usr/local/bin"), Path("/usr/bin")]
    binaries = next((place for place in programs if (place / "initdb").is_file()), None)
    if binaries is None:
        pytest.skip("requires PostgreSQL: apt-get install postgresql")
    pytest.importorskip("psycopg")
    home = Path(tempfile.mkdtemp(prefix="rtdetr-pg-"))  # short: the path of a socket has at most 107 characters
    prefix: list[str] = []
    if os.getuid() == 0:  # the server refuses to run as root
        shutil.chown(home, "nobody")
        prefix = ["setpriv", "--reuid=nobody", "--clear-groups", "--"]
    try:
        data, secret = home / "data", home / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        server = [*prefix, str(binaries / "initdb"), "-D", str(data), "-U", "me", "-A", "scram-sha-256"]
        subprocess.run([*server, f"--pwfile={secret}"], check=True, capture_output=True, cwd=home)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        control = [*prefix, str(binaries / "pg_ctl"), "-D", str(data), "-w"]
        settings = f"-p {port} -k {home} -c listen_addresses=127.0.0.1"
        subprocess.run([*control, "-l", str(home / "log"), "-o", settings, "start"], check=True, cwd=home)
        try:
            yield f"postgresql://me:{PASSWORD}@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], check=True, cwd=home)
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.slow
def test_two_processes_and_a_second_results_folder_share_a_search_in_postgresql(searched, postgres):
    options = [f"automl.storage={postgres}", "automl.workers=2"]
    first = run(searched, "nowhere", *options, "automl.trials=4")
    assert first.returncode == 0, first.stderr[-2000:]
    assert [trial["state"] for trial in content(searched)] == ["finished"] * 4
    other = searched.folder / "other"
    second = run(searched, "nowhere", *options, "automl.trials=6", f"automl.results_dir={other}")
    assert second.returncode == 0, second.stderr[-2000:]
    trials = json.loads((other / "automl.json").read_text())["trials"]
    assert [trial["number"] for trial in trials] == list(range(6))
    assert [Path(trial["folder"]).parent for trial in trials[4:]] == [other, other]
    assert len({json.dumps(trial["values"]) for trial in trials}) == 6
    written = [path for path in searched.folder.rglob("*") if path.is_file() and path.suffix != ".py"]
    assert not [path for path in written if PASSWORD.encode() in path.read_bytes()]
    assert PASSWORD not in first.stdout + first.stderr + second.stdout + second.stderr
