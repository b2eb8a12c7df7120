"""A resumed run logs the same numbers at the same steps as an uninterrupted one."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path

import pytest
import pytorch_lightning as pl

from rtdetr_tool.errors import Preempted
from rtdetr_tool.training.fit import fit

CHANGES = {"dataset__batch_size": 2, "train__num_epochs": 3, "train__tensorboard": False}  # four steps an epoch


def rows_of(folder: Path) -> dict[tuple[int, str], str]:
    """Value by step and column from all CSV files of a run. A value that is logged twice must be the same."""
    rows: dict[tuple[int, str], str] = {}
    for file in sorted(folder.glob("csv_logs/version_*/metrics.csv")):
        for row in csv.DictReader(file.read_text().splitlines()):
            for name, value in row.items():
                if value and name != "step":
                    key = (int(row["step"]), name)
                    assert rows.setdefault(key, value) == value, key
    return rows


class Stop(pl.Callback):
    def __init__(self, hook: str, epoch: int, batch: int) -> None:
        self.position = (hook, epoch, batch)

    def _at(self, *position):
        if position == self.position:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_epoch_start(self, trainer, pl_module):
        self._at("epoch_start", trainer.current_epoch, 0)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._at("train", trainer.current_epoch, batch_idx)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self._at("validation", trainer.current_epoch, batch_idx)

    def on_train_epoch_end(self, trainer, pl_module):
        self._at("epoch_end", trainer.current_epoch, 0)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    result: dict[str, dict] = {}

    def rows(make_spec):
        if not result:
            folder = tmp_path_factory.mktemp("uninterrupted")
            fit(make_spec(**CHANGES, train__results_dir=str(folder)), log_every_n_steps=1)
            result["rows"] = rows_of(folder)
        return result["rows"]

    return rows


@pytest.mark.parametrize(
    "position",
    [
        ("train", 1, 3),
        ("validation", 0, 0),
        ("epoch_end", 0, 0),
        *(pytest.param(position, marks=pytest.mark.slow) for position in (("train", 1, 0), ("train", 1, 2))),
        pytest.param(("epoch_start", 1, 0), marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_logs_the_rows_of_an_uninterrupted_one(make_spec, tmp_path, uninterrupted, position):
    spec = make_spec(**CHANGES, train__results_dir=str(tmp_path))
    with pytest.raises(Preempted):
        fit(spec, log_every_n_steps=1, callbacks=[Stop(*position)])
    fit(spec, log_every_n_steps=1)
    assert rows_of(tmp_path) == uninterrupted(make_spec)
