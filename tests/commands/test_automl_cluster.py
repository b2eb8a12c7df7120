"""A search with jobs of a cluster. The jobs run as processes of this machine, through submitit's local executor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("optuna")
pytest.importorskip("submitit")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def searched(project):
    project.spec["train"] = {"accelerator": "cpu", "num_epochs": 2, "report": False, "tensorboard": False}
    project.spec["dataset"]["batch_size"] = 6
    project.spec["automl"] = {
        "trials": 1, "fields": ["train.optim.lr"], "pruner": "none", "slurm": {"jobs": 1, "cluster": "local"}
    }  # fmt: skip
    project.write()
    return project


def folder(project) -> Path:
    return project.folder / "results" / "automl"


def start(project, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rtdetr_tool", "automl", "-e", str(project.spec_file), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, cwd=project.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def trials(project) -> list[dict]:
    return json.loads((folder(project) / "automl.json").read_text())["trials"]


def wait_for(condition, process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.stderr.read()[-3000:]
        time.sleep(0.1)


def jobs(project) -> dict[str, str]:
    path = folder(project) / "jobs.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def message(capsys) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_search_finds_its_job_again_and_writes_the_best_spec(searched):
    process = start(searched)
    try:
        wait_for(lambda: jobs(searched), process)
    finally:
        process.kill()
        process.communicate()
    first = jobs(searched)
    assert searched.run("automl") == 0
    assert sorted(path.name for path in (folder(searched) / "jobs").glob("*_submitted.pkl")) == [
        f"{first['worker_00']}_submitted.pkl"
    ]
    (trial,) = trials(searched)
    assert trial["state"] == "finished" and list(trial["scores"]) == ["1", "2"]
    worker = folder(searched) / "worker_00"
    assert trial["folder"] == str(worker / "trial_0000")
    assert (worker / "trial_0000" / "model_epoch_001.pth").is_file()
    assert "automl" not in (folder(searched) / "best_spec.yaml").read_text()
    assert json.loads((worker / "status.json").read_text().splitlines()[-1])["status"] == "SUCCESS"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_job_is_submitted_again_and_resumes_its_trial(searched):
    process = start(searched, "automl.trials=2", "automl.slurm.jobs=2", "train.num_epochs=8")
    saved = folder(searched) / "worker_00"
    wait_for(lambda: list(saved.glob("trial_*/model_epoch_001.pth")), process)
    controller = jobs(searched)["worker_00"]
    group = subprocess.run(["pgrep", "-P", controller], capture_output=True, text=True, check=True).stdout.split()
    children = [subprocess.run(["pgrep", "-P", one], capture_output=True, text=True).stdout.split() for one in group]
    for pid in [controller, *group, *(pid for below in children for pid in below)]:
        os.kill(int(pid), signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]
    assert f"Job {controller} of worker_00 ended before the search; it is submitted again" in " ".join(errors.split())
    assert [trial["state"] for trial in trials(searched)] == ["finished"] * 2
    log = "".join(path.read_text() for path in saved.glob("trial_*/log.txt"))
    assert "Resuming from" in log


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sigterm_cancels_the_jobs_after_they_have_saved(searched):
    options = ["automl.trials=2", "automl.slurm.jobs=2", "train.num_epochs=8"]
    process = start(searched, *options)
    wait_for(lambda: list(folder(searched).glob("worker_0*/trial_*/model_epoch_001.pth")), process)
    pids = list(jobs(searched).values())
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 75, errors[-3000:]
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert searched.run("automl", *options) == 0
    assert [list(trial["scores"]) for trial in trials(searched)] == [[str(n) for n in range(1, 9)]] * 2


@pytest.mark.slow
def test_a_worker_that_cannot_start_ends_the_search_after_three_attempts(searched, capsys, monkeypatch):
    from rtdetr_tool.search import cluster

    monkeypatch.setattr(cluster, "SPEC_VARIABLE", "RTDETR_NOBODY_READS_THIS")
    assert searched.run("automl") == 1
    text = message(capsys)
    assert text.count("Submitted job") == 3 and "it is not submitted again" in text
    assert "no job made progress in 3 attempts" in text and str(folder(searched) / "jobs") in text


@pytest.mark.slow
def test_a_password_is_in_no_file(searched):
    """The worker gets it in its environment. The database does not exist, which it reports without the password."""
    from rtdetr_tool.search import cluster
    from rtdetr_tool.spec.slurm import SlurmSpec

    secret = "correct-horse-battery"
    files = searched.folder / "jobs"
    local = cluster.open_cluster(SlurmSpec(jobs=1, cluster="local"), files, gpus=0)
    section = {"storage": f"postgresql://me:{secret}@127.0.0.1:1/none", "fields": ["train.optim.lr"]}
    spec = {**searched.spec, "automl": section}
    spec["results_dir"] = str(searched.folder / "worker")
    job = local.submit(json.dumps(spec))
    assert cluster.wait_until_ended(local, [job], 120) == set()
    output = cluster.job_output(files, job).read_text() + (files / f"{job}_0_log.out").read_text()
    assert "automl.storage: postgresql://***@127.0.0.1:1/none" in output and secret not in output
    written = [path for path in searched.folder.rglob("*") if path.is_file() and path != searched.spec_file]
    assert files / f"{job}_submitted.pkl" in written
    assert not [path for path in written if secret.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["automl.slurm.options={Account: x}"], ["automl.slurm.options: Account is invalid", "such as account"]),
        (["automl.slurm.options={array: 1-3}"], ["automl.slurm.options: array is set by the command"]),
        (["automl.slurm.options={exclusive: false}"], ["exclusive: False is invalid", "true for an option without"]),
        (["automl.slurm.time=1"], ["automl.slurm.time: 1 is invalid", "at least 3"]),
        (["automl.supernet_checkpoint=x.pth"], ["automl.slurm.jobs has no effect: automl.supernet_checkpoint is set"]),
        (["automl.slurm.cluster=lsf"], ["automl.slurm.cluster: 'lsf' is invalid", "slurm, local"]),
    ],
)
def test_invalid_fields_are_one_message(searched, capsys, options, expected):
    assert searched.run("automl", *options) == 2
    text = message(capsys)
    assert all(part in text for part in expected), text


def test_a_machine_without_slurm_is_one_message(searched, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert searched.run("automl", "automl.slurm.cluster=slurm") == 2
    text = message(capsys)
    assert "automl.slurm.jobs: 1 requires SLURM, but this machine has no sbatch" in text and "login node" in text
    assert not (folder(searched) / "jobs.json").exists()


def test_the_batch_script_has_the_fields_as_options(searched, capsys, monkeypatch, tmp_path):
    """sbatch is a program that refuses everything, as a cluster does with an unknown account."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sbatch", "srun", "squeue", "scancel"):
        (programs / name).write_text('#!/bin/sh\necho "sbatch: error: Invalid account" >&2\nexit 1\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    searched.spec["automl"]["slurm"] = {
        "jobs": 2, "partition": "long", "time": 90, "gpus": 2, "cpus": 8, "memory": 1.5, "options": {"account": "x"}
    }  # fmt: skip
    searched.write()
    assert searched.run("automl") == 2
    assert "automl.slurm: the job was refused: Invalid account" in message(capsys)
    (script,) = (folder(searched) / "jobs").glob(".submission_file_*.sh")
    lines = {line.removeprefix("#SBATCH --") for line in script.read_text().splitlines() if line.startswith("#SBATCH")}
    assert {
        "partition=long", "time=90", "gpus-per-node=2", "cpus-per-task=8", "mem=1536M", "account=x", "nodes=1",
        "ntasks-per-node=1", "signal=USR2@90",
    } <= lines  # fmt: skip


def test_a_search_in_sqlite_is_not_started_again_as_jobs(searched, capsys):
    folder(searched).mkdir(parents=True)
    (folder(searched) / "study.db").touch()
    assert searched.run("automl") == 2
    text = message(capsys)
    assert "is stored in study.db, which jobs do not use" in text and "automl.slurm.jobs=null" in text
