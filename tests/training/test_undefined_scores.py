"""Undefined validation scores: they are not logged, and ignored by best checkpoint and early stopping."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import draw_dataset

from rtdetr_tool.training import DetectionDataModule, DetectorModule, build_trainer
from rtdetr_tool.training.callbacks.early_stopping import EarlyStopping
from rtdetr_tool.training.callbacks.periodic_checkpoint import checkpoints_of


@pytest.fixture
def undefined_run(make_spec, tmp_path, monkeypatch, caplog):
    """Three epochs with early stopping, without the check of the data module that refuses such data."""
    val = draw_dataset(tmp_path / "empty", 2, 5, objects=0)
    spec = make_spec(
        train__num_epochs=3, train__early_stopping__enabled=True, train__early_stopping__patience=1,
        dataset__val_data_sources=val,
    )  # fmt: skip
    monkeypatch.setattr("rtdetr_tool.training.datamodule.check_before_training", lambda *_: None)
    data = DetectionDataModule(spec)
    data.setup("fit")
    module = DetectorModule(spec, data.class_map)
    trainer = build_trainer(spec, enable_progress_bar=True)
    trainer.fit(module, data)
    return SimpleNamespace(spec=spec, trainer=trainer, module=module, log=caplog.text)


def test_an_undefined_score_is_ignored_by_best_checkpoint_and_early_stopping(undefined_run):
    run = undefined_run
    folder = Path(run.spec.train.results_dir)
    assert run.trainer.current_epoch == 3  # with patience 1, a score without improvement would end it earlier
    assert checkpoints_of(run.trainer).best_score is None and checkpoints_of(run.trainer).best_path is None
    assert not (folder / "rtdetr_model_best.pth").exists() and (folder / "model_epoch_002.pth").exists()
    assert run.module.metrics["val/mAP_50_95"] is None and run.module.metrics["val/threshold"] is None
    assert not {"val_mAP", "val/mAP_50_95"} & set(run.trainer.callback_metrics)
    assert {"val_loss", "val/loss"} <= set(run.trainer.callback_metrics)
    rows = list(csv.DictReader(next(folder.rglob("metrics.csv")).read_text().splitlines()))
    assert "val/mAP_50_95" not in rows[0] and any(row["val/loss"] for row in rows)
    stored = torch.load(folder / "model_epoch_002.pth", weights_only=True)["rtdetr_tool"]["metrics"]
    assert "val/loss" not in stored and "val/mAP_50_95" not in stored
    assert run.log.count("val data has no objects to score val/mAP_50_95") == 1


@pytest.mark.parametrize("score", [float("nan"), float("-inf")])
def test_early_stopping_ignores_a_non_finite_score(score):
    callback = EarlyStopping(patience=1)
    trainer = SimpleNamespace(
        callback_metrics={"val/mAP_50_95": torch.tensor(score)}, state=SimpleNamespace(fn="fit"), sanity_checking=False,
        callbacks=[], should_stop=False, current_epoch=0,
    )  # fmt: skip
    for _ in range(3):
        callback.on_validation_end(trainer, None)
    assert callback.best is None and callback.waited == 0 and not trainer.should_stop


def test_the_status_file_has_null(tmp_path):
    from rtdetr_tool.status import StatusLogger

    status = StatusLogger(tmp_path / "status.json")
    status.running("Eval metrics generated.", kpi={"val_mAP": None, "val_loss": 1.5})
    assert json.loads((tmp_path / "status.json").read_text())["kpi"] == {"val_mAP": None, "val_loss": 1.5}
