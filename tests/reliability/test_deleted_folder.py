"""A results folder that is deleted during a run stays locked by the run, or belongs to another run that took it."""

from __future__ import annotations

import json

import pytest

from rtdetr_tool.commands.run_lock import NAME, RunLock
from rtdetr_tool.errors import UserError

# Of the second file of step 2, the first of step 4, and the first link; the folder was confirmed before each.
POINTS = {"before_a_save": "opening 2", "after_a_save": "saved 3", "before_a_link": "linking 1"}


@pytest.mark.parametrize(
    "point", [pytest.param(point, marks=pytest.mark.slow if number else ()) for number, point in enumerate(POINTS)]
)
def test_a_folder_that_was_deleted_is_made_again_with_its_lock(trial, point):
    name = f"deleted_{point}"
    run, folder = trial.hold(name, f"{POINTS[point]}, saving 5"), trial.results(name)
    folder.rename(folder.with_name("gone"))
    trial.release(name)
    trial.wait_until_held(name, run)
    with pytest.raises(UserError, match="is in use by `rtdetr train`"):
        RunLock(folder, "train")
    trial.release(name)
    assert run.wait() == 0, trial.output(name)
    assert "was deleted during the run and has been created again" in trial.output(name)
    assert "Traceback" not in trial.output(name)
    assert trial.status(name)[-1]["status"] == "SUCCESS"
    assert "was deleted during the run" in (folder / "log.txt").read_text()
    assert (folder / "model_epoch_001.pth").is_file() and not (folder / NAME).exists()
    assert (folder / "rtdetr_model_latest.pth").is_file()
    assert [file.name for file in folder.glob(".*")] == []


@pytest.mark.parametrize("point", POINTS)
def test_a_folder_that_another_run_has_taken_is_left_alone(trial, point):
    name = f"taken_{point}"
    run, folder = trial.hold(name, POINTS[point]), trial.results(name)
    folder.rename(folder.with_name("gone"))
    folder.mkdir()
    other = RunLock(folder, "train")
    (folder / "status.json").write_text(json.dumps({"status": "STARTED"}) + "\n")
    trial.release(name)
    try:
        assert run.wait() == 1, trial.output(name)
        assert "now belongs to another run" in trial.output(name) and "Traceback" not in trial.output(name)
        assert sorted(file.name for file in folder.iterdir()) == [NAME, "status.json"]
        assert trial.status(name) == [{"status": "STARTED"}]
    finally:
        other.release()
