"""A results folder deleted while a run trains: the run keeps it locked, or leaves it to the run that took it."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from rtdetr_tool.commands.run_lock import NAME, RunLock
from rtdetr_tool.errors import UserError


def _saved_once(trial, name: str, **faults):
    run = trial.fork(name, slow=0.5, **faults)
    while "saved" not in trial.faults(name):
        time.sleep(0.01)
    return run


def test_a_folder_that_was_deleted_is_made_again_with_its_lock(trial):
    run, folder = _saved_once(trial, "deleted"), trial.results("deleted")
    folder.rename(folder.with_name("gone"))
    while not (folder / NAME).exists():
        time.sleep(0.01)
    with pytest.raises(UserError, match="is in use by `rtdetr train`"):
        RunLock(folder, "train")
    assert run.wait() == 0, trial.output("deleted")
    assert "was deleted during the run and is there again" in trial.output("deleted")
    assert "Traceback" not in trial.output("deleted")
    assert trial.status("deleted")[-1]["status"] == "SUCCESS"
    assert "was deleted during the run" in (folder / "log.txt").read_text()
    assert (folder / "model_epoch_001.pth").is_file() and not (folder / NAME).exists()


def test_a_folder_that_another_run_has_taken_is_left_alone(trial):
    run, folder = _saved_once(trial, "taken"), trial.results("taken")
    os.kill(run.pid, signal.SIGSTOP)  # else it may be faster than the other one
    folder.rename(folder.with_name("gone"))
    folder.mkdir()
    other = RunLock(folder, "train")
    (folder / "status.json").write_text(json.dumps({"status": "STARTED"}) + "\n")
    os.kill(run.pid, signal.SIGCONT)
    try:
        assert run.wait() == 1, trial.output("taken")
        assert "It is another's now" in trial.output("taken") and "Traceback" not in trial.output("taken")
        assert sorted(file.name for file in folder.iterdir()) == [NAME, "status.json"]
        assert trial.status("taken") == [{"status": "STARTED"}]
    finally:
        other.release()
