"""The numbers of a resumed run are logged at the steps at which an unbroken run logs them."""

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
    """Value by step and column, of all CSV files of a run; a value that is logged twice must not change."""
    found: dict[tuple[int, str], str] = {}
    for file in sorted(folder.glob("csv_logs/version_*/metrics.csv")):
        for row in csv.DictReader(file.open()):
            for name, value in row.items():
                if value and name != "step":
                    key = (int(row["step"]), name)
                    assert found.setdefault(key, value) == value, key
    return found


class Stop(pl.Callback):
    def __init__(self, hook: str, epoch: int, batch: int) -> None:
        self.place = (hook, epoch, batch)

    def _at(self, *place):
        if place == self.place:
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
def unbroken(tmp_path_factory):
    made: dict[str, dict] = {}

    def rows(make_spec):
        if not made:
            folder = tmp_path_factory.mktemp("unbroken")
            fit(make_spec(**CHANGES, train__results_dir=str(folder)), log_every_n_steps=1)
            made["rows"] = rows_of(folder)
        return made["rows"]

    return rows


@pytest.mark.parametrize(
    "place",
    [
        ("train", 1, 3),
        ("validation", 0, 0),
        ("epoch_end", 0, 0),
        *(pytest.param(place, marks=pytest.mark.slow) for place in (("train", 1, 0), ("train", 1, 2))),
        pytest.param(("epoch_start", 1, 0), marks=pytest.mark.slow),
    ],
)
def test_rows_of_a_resumed_run_are_those_of_an_unbroken_one(make_spec, tmp_path, unbroken, place):
    spec = make_spec(**CHANGES, train__results_dir=str(tmp_path))
    with pytest.raises(Preempted):
        fit(spec, log_every_n_steps=1, callbacks=[Stop(*place)])
    fit(spec, log_every_n_steps=1)
    wanted, found = unbroken(make_spec), rows_of(tmp_path)
    assert {key: wanted.get(key) for key in wanted | found} == {key: found.get(key) for key in wanted | found}
