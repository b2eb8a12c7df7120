"""A run without its terminal: closed pipes, redirected output on a full disk, hang-ups, signals at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rtdetr_tool.checkpoints.io import load_checkpoint

ROOT = Path(__file__).parents[2]


def test_a_reader_that_closes_the_pipe_does_not_end_the_run(trial):
    pipe = trial.folder / "output.pipe"
    os.mkfifo(pipe)
    run = trial.fork("pipe", output=pipe)
    with pipe.open() as reader:
        assert reader.readline()
    assert run.wait() == 0
    assert trial.status("pipe")[-1]["status"] == "SUCCESS"
    assert "Epoch 2/2 done" in (trial.results("pipe") / "log.txt").read_text()


@pytest.mark.slow
def test_a_full_disk_behind_the_output_does_not_end_the_run(trial):
    assert trial.run("full_output", output="/dev/full") == 0
    assert trial.status("full_output")[-1]["status"] == "SUCCESS"
    assert "Epoch 2/2 done" in (trial.results("full_output") / "log.txt").read_text()


@pytest.mark.slow
def test_a_hang_up_saves_and_ends_as_sigterm_does(trial):
    run = trial.hold("hang_up", "saved 1")
    run.kill(signal.SIGHUP)
    trial.release("hang_up")
    assert run.wait() == 75, trial.output("hang_up")
    assert "ended by SIGHUP after saving" in trial.status("hang_up")[-1]["message"]
    assert load_checkpoint(trial.results("hang_up") / "rtdetr_model_latest.pth")["global_step"] > 0
    assert trial.run("hang_up") == 0, trial.output("hang_up")


@pytest.mark.slow
def test_a_hang_up_that_the_program_was_started_to_ignore_stays_ignored(trial):
    run = trial.hold("nohup", "saved 1", nohup=1)
    run.kill(signal.SIGHUP)
    trial.release("nohup")
    assert run.wait() == 0, trial.output("nohup")


@pytest.mark.parametrize("names", ["SIGTERM SIGHUP SIGUSR1", pytest.param("SIGINT", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_signal_after_the_end_does_not_change_the_exit_code(trial, names):
    name = f"late_{names.split()[0]}"
    assert trial.run(name, late=names) == 0, trial.output(name)
    assert [line["status"] for line in trial.status(name)].count("SUCCESS") == 1
    assert trial.status(name)[-1]["status"] == "SUCCESS"


@pytest.mark.parametrize("where", ["1", "2"])
def test_bad_input_is_exit_code_2_also_where_nobody_can_read_why(trial, where):
    command = f"{sys.executable} -m rtdetr_tool train -e {trial.folder}/none.yaml {where}>/dev/full"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, timeout=600)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


def test_a_result_that_cannot_be_printed_is_an_error_and_a_reader_that_has_enough_is_none():
    program = f"{sys.executable} -m rtdetr_tool default_specs train"
    full = subprocess.run(["bash", "-c", f"{program} > /dev/full"], cwd=ROOT, capture_output=True, timeout=600)
    assert (full.returncode, full.stderr) == (2, b"Error: the output cannot be written: No space left on device\n")
    head = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{program} | head -1"], cwd=ROOT, capture_output=True, timeout=600
    )
    assert (head.returncode, head.stderr) == (0, b"")


@pytest.mark.slow
def test_a_path_that_is_not_ascii_is_read_in_the_c_locale(tmp_path):
    folder = tmp_path / "données ü"
    folder.mkdir()
    (folder / "spec.yaml").write_text("model: {}\n")
    command = [sys.executable, "-m", "rtdetr_tool", "train", "-e", str(folder / "spec.yaml"), "-r", str(folder / "r"),
               f"dataset.dataset_dir={folder / 'nothing'}", "train.accelerator=cpu"]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    done = subprocess.run(command, cwd=ROOT, env={**environment, "LC_ALL": "C"}, capture_output=True, timeout=600)
    assert done.returncode == 2
    assert f"{folder / 'nothing'}" in done.stderr.decode()
    assert "not key=value" not in done.stderr.decode()
    assert (folder / "r" / "train" / "status.json").is_file()
