"""Running the same command again after a run that has finished, stopped early or failed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import pytorch_lightning as pl

from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.errors import CheckpointError, RtdetrError
from rtdetr_tool.training.checkpointing import LATEST
from rtdetr_tool.training.fit import fit

STOPPING = {
    "train__num_epochs": 9, "train__early_stopping__enabled": True, "train__early_stopping__patience": 1,
    "train__early_stopping__min_delta": 1.0, "train__tensorboard": False,
}  # fmt: skip


def checkpoints(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("model_epoch_*.pth"))


class TestAfterEarlyStopping:
    def test_a_restart_trains_nothing(self, make_spec, tmp_path, caplog):
        spec = make_spec(**STOPPING, train__results_dir=str(tmp_path))
        first = fit(spec)
        before = {name: (tmp_path / name).stat().st_mtime_ns for name in checkpoints(tmp_path)}
        assert list(before) == ["model_epoch_000.pth", "model_epoch_001.pth"]
        for _ in range(2):
            again = fit(spec)
            assert {name: (tmp_path / name).stat().st_mtime_ns for name in checkpoints(tmp_path)} == before
            assert "early stopping ended the run in" in caplog.text
            assert (again.best_score, again.best_epoch) == (first.best_score, first.best_epoch)
            assert again.latest_path == first.latest_path

    def test_more_patience_or_disabling_it_continues_training(self, make_spec, tmp_path):
        fit(make_spec(**STOPPING, train__results_dir=str(tmp_path)))
        more = {**STOPPING, "train__early_stopping__patience": 2}
        fit(make_spec(**more, train__results_dir=str(tmp_path)))
        assert checkpoints(tmp_path)[-1] == "model_epoch_002.pth"
        without = {**STOPPING, "train__early_stopping__enabled": False, "train__num_epochs": 4}
        fit(make_spec(**without, train__results_dir=str(tmp_path)))
        assert checkpoints(tmp_path)[-1] == "model_epoch_003.pth"


@pytest.mark.parametrize("done", [2, 3])
def test_fewer_epochs_than_the_checkpoint_has_are_refused(make_spec, tmp_path, done):
    changes = {"train__results_dir": str(tmp_path), "train__tensorboard": False}
    fit(make_spec(**changes, train__num_epochs=done))
    before = checkpoints(tmp_path)
    message = rf"model_epoch_00{done - 1}\.pth was trained for {done} epochs.* train\.num_epochs is 1.*Raise train"
    with pytest.raises(CheckpointError, match=message):
        fit(make_spec(**changes, train__num_epochs=1))
    assert checkpoints(tmp_path) == before


def test_a_run_with_all_its_epochs_is_finished(make_spec, tmp_path, caplog):
    spec = make_spec(train__results_dir=str(tmp_path), train__tensorboard=False)
    first = fit(spec)
    assert fit(spec).latest_path == first.latest_path
    assert "already has train.num_epochs epochs" in caplog.text


class Failure(pl.Callback):
    """Raises an unexpected exception in one hook of one epoch and batch."""

    def __init__(self, hook: str, epoch: int, batch: int) -> None:
        self.position = (hook, epoch, batch)

    def _at(self, *position):
        if position == self.position:
            raise ValueError("something broke")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._at("train", trainer.current_epoch, batch_idx)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._at("train_end", trainer.current_epoch, batch_idx)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self._at("validation", trainer.current_epoch, batch_idx)


EXACT = {
    "dataset__batch_size": 2, "train__num_epochs": 2, "train__enable_ema": True, "train__tensorboard": False,
    "train__optim__lr": 1e-3, "dataset__augmentation__multi_scales": [32, 64], "train__checkpoint_interval": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    weights: dict[str, dict] = {}

    def state(make_spec):
        if not weights:
            folder = tmp_path_factory.mktemp("uninterrupted")
            fit(make_spec(**EXACT, train__results_dir=str(folder)), logger=False)
            weights.update(load_checkpoint(folder / "model_epoch_001-EMA.pth")["state_dict"])
        return weights

    return state


class TestAfterAnException:
    @pytest.mark.parametrize(
        ("position", "saved"),
        [
            (("train", 0, 2), "model_epoch_000_step_00002-EMA.pth"),
            (("train", 1, 0), "model_epoch_001_step_00004-EMA.pth"),
            (("validation", 0, 0), "model_epoch_000_step_00004-EMA.pth"),
            pytest.param(("train_end", 0, 2), "model_epoch_000_step_00003-EMA.pth", marks=pytest.mark.slow),
        ],
    )
    def test_the_state_is_saved_and_resumes_exactly(self, make_spec, tmp_path, caplog, uninterrupted, position, saved):
        spec = make_spec(**EXACT, train__results_dir=str(tmp_path))
        with pytest.raises(ValueError, match="something broke"):
            fit(spec, logger=False, callbacks=[Failure(*position)])
        assert os.readlink(tmp_path / LATEST) == saved
        assert f"saved in {tmp_path / saved}" in caplog.text
        assert fit(spec, logger=False).resumed_from == tmp_path / saved
        ended = load_checkpoint(tmp_path / "model_epoch_001-EMA.pth")["state_dict"]
        expected = uninterrupted(make_spec)
        assert [name for name, tensor in expected.items() if not tensor.equal(ended[name])] == []

    def test_nothing_is_saved_before_the_first_step(self, make_spec, tmp_path):
        spec = make_spec(**EXACT, train__results_dir=str(tmp_path))
        with pytest.raises(ValueError, match="something broke"):
            fit(spec, logger=False, callbacks=[Failure("train", 0, 0)])
        assert checkpoints(tmp_path) == []

    def test_non_finite_weights_are_not_saved(self, make_spec, tmp_path):
        class NanWeights(pl.Callback):
            def on_train_batch_end(self, trainer, pl_module, *args):
                next(pl_module.parameters()).data.fill_(float("nan"))

        spec = make_spec(**EXACT, train__results_dir=str(tmp_path))
        with pytest.raises(RtdetrError, match="no checkpoint was saved"):
            fit(spec, logger=False, callbacks=[NanWeights()])
        assert checkpoints(tmp_path) == []
