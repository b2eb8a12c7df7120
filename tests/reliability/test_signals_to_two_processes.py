"""A signal to one of two processes (gloo) stops both at the same step, and resuming is exact."""

from __future__ import annotations

import os
import signal

import pytest

from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.training.checkpointing import LATEST


def _same_files(trial, a: str, b: str, names: tuple[str, ...]) -> None:
    import torch

    for name in names:
        one, two = (load_checkpoint(trial.results(run) / name) for run in (a, b))
        for key in ("state_dict", "ema_state_dict", "raw_state_dict"):
            assert all(torch.equal(tensor, two[key][n]) for n, tensor in one.get(key, {}).items()), (name, key)
        assert one["rtdetr_tool"]["metrics"] == two["rtdetr_tool"]["metrics"]


def _losses(trial, name: str) -> dict[int, float]:
    """The mean loss of each epoch from status.json; the last one of a repeated epoch."""
    lines = trial.status(name)
    ends = [i for i, line in enumerate(lines) if line["message"] == "Training loop in progress"]
    return {lines[i]["epoch"]: lines[i]["kpi"]["train_loss"] for i in ends}


@pytest.mark.slow
@pytest.mark.parametrize("to_child", [True, False])
def test_a_signal_to_one_process_saves_in_all_and_the_run_resumes_exactly(trial, to_child):
    two = ("train.num_gpus=2", "dataset.batch_size=1")
    names = ("model_epoch_001.pth", "model_epoch_001-EMA.pth")
    if not trial.results("two_whole").exists():
        assert trial.start("two_whole", *two).wait(timeout=600) == 0, trial.output("two_whole")
    name = f"two_{to_child}"
    run = trial.start(name, *two, hold="saved 1")  # step 2 of 4
    trial.wait_until_held(name, run)
    with open(f"/proc/{run.pid}/task/{run.pid}/children") as file:
        child = int(file.read().split()[0])
    os.kill(child if to_child else run.pid, signal.SIGTERM)
    trial.release(name)
    assert run.wait(timeout=600) == 75, trial.output(name)
    last = trial.status(name)[-1]
    assert last["status"] == "FAILURE" and "ended by SIGTERM after saving" in last["message"]
    assert "_step_0000" in os.readlink(trial.results(name) / LATEST)
    assert trial.start(name, *two).wait(timeout=600) == 0, trial.output(name)
    _same_files(trial, "two_whole", name, names)
    assert _losses(trial, name) == _losses(trial, "two_whole")
