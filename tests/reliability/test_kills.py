"""A run that is killed at any moment and resumed ends with the same weights, and no file is corrupted."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from rtdetr_tool.checkpoints.io import load_checkpoint

LAST = ("model_epoch_001.pth", "model_epoch_001-EMA.pth")
SLOW = 0.15  # seconds of a save in which a kill may happen


@pytest.fixture(scope="module")
def unbroken(trial):
    """Final files of an uninterrupted run, by name."""
    assert trial.run("unbroken") == 0, trial.output("unbroken")
    return {name: load_checkpoint(trial.results("unbroken") / name) for name in LAST}


def assert_ends_like(folder: Path, wanted: dict[str, dict]) -> None:
    for name, whole in wanted.items():
        own = load_checkpoint(folder / name)
        for key in ("state_dict", "raw_state_dict", "ema_state_dict", "optimizer_states"):
            assert _same(whole.get(key), own.get(key)), f"{folder.parent.name}/{name}: {key}"
        assert own["rtdetr_tool"]["metrics"] == whole["rtdetr_tool"]["metrics"]


def assert_nothing_damaged(folder: Path) -> None:
    """Every checkpoint in the folder can be read, including the target of the link."""
    for file in _checkpoints(folder):
        assert load_checkpoint(file)["tao_model"] == "rtdetr"


def _checkpoints(folder: Path) -> list[Path]:
    return list(folder.glob("[!.]*.pth"))


def _same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def _kill_and_resume(trial, unbroken, name: str, moment: float, number: int) -> tuple[bool, bool] | None:
    """Whether the kill happened during a save, and whether there was a checkpoint; None if the run had ended."""
    run = trial.fork(name, slow=SLOW)
    time.sleep(moment)
    run.kill(number)
    code = run.wait()
    if code == 0:
        return None
    documented = {signal.SIGTERM: 75, signal.SIGINT: 130}.get(number)
    assert code in (documented, -number), trial.output(name)  # the default action, before handlers are installed
    folder = trial.results(name)
    inside = trial.faults(name)[-1:] == ["saving"]
    resumable = (folder / "rtdetr_model_latest.pth").exists()
    assert_nothing_damaged(folder)
    assert trial.run(name) == 0, trial.output(name)
    assert_ends_like(folder, unbroken)
    assert_nothing_damaged(folder)
    assert [file.name for file in folder.iterdir() if file.name.startswith(".")] == []
    assert trial.status(name)[-1]["status"] == "SUCCESS"
    return inside, resumable


def test_a_run_killed_in_a_save_and_ended_by_a_signal_resumes_and_ends_the_same(trial, unbroken):
    run = trial.hold("in_a_save", "saving 1")
    run.kill()
    assert run.wait() == -9
    folder = trial.results("in_a_save")
    assert _checkpoints(folder) == []
    assert len([file for file in folder.iterdir() if file.name.startswith(".model_epoch_000_step_00002.")]) == 1
    run = trial.hold("in_a_save", "saving 3")  # after the two of step 2, the first of step 4
    run.kill(signal.SIGUSR1)
    trial.release("in_a_save")
    assert run.wait() == 75
    states = [(line["status"], line["message"].split(":")[0]) for line in trial.status("in_a_save")]
    assert ("FAILURE", "Killed") in states and states[-1] == ("FAILURE", "User/System interruption")
    assert os.readlink(folder / "rtdetr_model_latest.pth") == "model_epoch_000_step_00004-EMA.pth"
    assert trial.run("in_a_save") == 0
    assert_ends_like(folder, unbroken)
    assert [file.name for file in folder.iterdir() if file.name.startswith(".")] == []


@pytest.mark.slow
def test_a_run_with_shares_of_sources_killed_within_an_epoch_ends_the_same(trial):
    other = trial.draw_source(trial.folder / "other", 4, np.random.default_rng(6))
    sources = [*trial.spec["dataset"]["train_data_sources"], other]
    listed = ", ".join(f"{{image_dir: '{row['image_dir']}', json_file: '{row['json_file']}'}}" for row in sources)
    shared = (f"dataset.train_data_sources=[{listed}]", "dataset.train_source_shares=[1, 3]")
    assert trial.run("shares", *shared) == 0, trial.output("shares")
    assert "75.0% (4 images)" in trial.output("shares")
    whole = {name: load_checkpoint(trial.results("shares") / name) for name in LAST}
    assert whole[LAST[0]]["global_step"] == 12
    run = trial.hold("shares_killed", "saving 3", *shared)  # in step 4 of the 6 of the first epoch
    run.kill()
    assert run.wait() == -9
    folder = trial.results("shares_killed")
    assert os.readlink(folder / "rtdetr_model_latest.pth") == "model_epoch_000_step_00002-EMA.pth"
    assert trial.run("shares_killed", *shared) == 0, trial.output("shares_killed")
    assert_ends_like(folder, whole)
    assert trial.run("shares_even", *shared[:1]) == 0, trial.output("shares_even")
    even = load_checkpoint(trial.results("shares_even") / LAST[0])
    assert not _same(even["state_dict"], whole[LAST[0]]["state_dict"]), "the shares have an effect"


@pytest.mark.slow
def test_thirty_runs_killed_at_random_moments_all_end_like_the_unbroken_one(trial, unbroken):
    rng = random.Random(20260101)
    kills, attempts = [], 0
    began = time.monotonic()
    assert trial.run("timed", slow=SLOW) == 0
    seconds = time.monotonic() - began
    while len(kills) < 30:
        number = rng.choice([signal.SIGKILL] * 4 + [signal.SIGTERM, signal.SIGINT])
        moment, attempts = rng.uniform(0.05, 1.0) * seconds, attempts + 1
        result = _kill_and_resume(trial, unbroken, f"random_{attempts}", moment, number)
        if result is not None:
            kills.append(result)
            where = f"in a save: {result[0]}, checkpoint to resume from: {result[1]}"
            print(f"{len(kills)}: {signal.Signals(number).name} after {moment:.2f} s; {where}")
        shutil.rmtree(trial.results(f"random_{attempts}"))
    inside, resumable = (sum(counts) for counts in zip(*kills, strict=True))
    print(
        f"30 of 30 have the same weights; {inside} kills fell into a save, {resumable} had a checkpoint to resume from"
    )
    assert inside >= 5 and resumable >= 10
