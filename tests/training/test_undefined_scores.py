"""Training on a module whose validation score is undefined: nothing takes -1 for a score."""

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
from rtdetr_tool.training.checkpointing import checkpoints_of


@pytest.fixture
def undefined_run(make_spec, tmp_path, monkeypatch, caplog):
    """Three epochs with early stopping; the check that refuses such data is that of the data module."""
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
    return SimpleNamespace(spec=spec, trainer=trainer, module=module, said=caplog.text)


def test_an_undefined_score_is_neither_best_nor_a_reason_to_stop(undefined_run):
    run = undefined_run
    folder = Path(run.spec.train.results_dir)
    assert run.trainer.current_epoch == 3  # patience 1 would have ended it after the second validation
    assert checkpoints_of(run.trainer).best_score is None and checkpoints_of(run.trainer).best_path is None
    assert not (folder / "rtdetr_model_best.pth").exists() and (folder / "model_epoch_002.pth").exists()
    assert run.module.metrics["val_mAP"] is None and run.module.metrics["val_threshold"] is None
    assert "val_mAP" not in run.trainer.callback_metrics and "val_loss" in run.trainer.callback_metrics
    rows = list(csv.DictReader(next(folder.rglob("metrics.csv")).open()))
    assert "val_mAP" not in rows[0] and any(row["val_loss"] for row in rows)
    stored = torch.load(folder / "model_epoch_002.pth", weights_only=True)["rtdetr_tool"]["metrics"]
    assert "val_mAP" not in stored
    assert run.said.count("Undefined, because no object of the val data counts") == 1


@pytest.mark.parametrize("score", [float("nan"), float("-inf")])
def test_early_stopping_passes_over_a_score_that_is_not_finite(score):
    callback = EarlyStopping(patience=1)
    trainer = SimpleNamespace(
        callback_metrics={"val_mAP": torch.tensor(score)}, state=SimpleNamespace(fn="fit"), sanity_checking=False,
        should_stop=False,
    )  # fmt: skip
    for _ in range(3):
        callback.on_validation_end(trainer, None)
    assert callback.best is None and callback.waited == 0 and not trainer.should_stop


def test_the_status_file_says_null(tmp_path):
    from rtdetr_tool.status import StatusLogger

    status = StatusLogger(tmp_path / "status.json")
    status.running("Eval metrics generated.", kpi={"val_mAP": None, "val_loss": 1.5})
    assert json.loads((tmp_path / "status.json").read_text())["kpi"] == {"val_mAP": None, "val_loss": 1.5}
