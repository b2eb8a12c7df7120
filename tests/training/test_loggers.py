"""Loggers: which ones a spec enables, and that none of them can end a run."""

from __future__ import annotations

import csv
import logging
import os
import re
import shutil
from pathlib import Path

import pytest
import pytorch_lightning as pl
from lightning_utilities.core.imports import RequirementCache
from pytorch_lightning.loggers import CSVLogger

from rtdetr_tool.spec import WandbSpec
from rtdetr_tool.training.fit import fit
from rtdetr_tool.training.logger_failures import guard_loggers
from rtdetr_tool.training.loggers import MLflow, build_loggers, is_wandb_enabled, mlflow_arguments

SECRET = "s3cr3tv4lue9876543210"


def kinds(loggers) -> list[str]:
    return [type(target).__name__ for target in loggers]


def test_without_tensorboard_only_csv_is_written(make_spec):
    spec = make_spec(train__tensorboard=False)
    fit(spec, log_every_n_steps=1)
    folder = Path(spec.train.results_dir)
    rows = list(csv.DictReader((folder / "csv_logs/version_0/metrics.csv").read_text().splitlines()))
    assert any(row["val/mAP_50_95"] for row in rows)
    assert not list(folder.rglob("events.*"))


def test_tensorboard_has_the_fields_of_the_run_as_hyperparameters(make_spec):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    spec = make_spec(train__notes=f"token={SECRET}")
    fit(spec)
    files = list(Path(spec.train.results_dir, "lightning_logs").rglob("events.*"))
    events = [EventAccumulator(str(file)).Reload() for file in files]
    start = next(
        HParamsPluginData.FromString(event.summary_metadata["_hparams_/session_start_info"].plugin_data.content)
        for event in events
        if "_hparams_/session_start_info" in event.summary_metadata
    ).session_start_info
    assert start.hparams["train.optim.lr"].number_value == spec.train.optim.lr
    assert start.hparams["model.backbone"].string_value == spec.model.backbone
    assert not any(SECRET.encode() in file.read_bytes() for file in files)
    assert not any("hp_metric" in event.Tags()["scalars"] for event in events)


@pytest.mark.parametrize(
    ("flags", "changes", "message"),
    [
        (["tensorboard._TENSORBOARD", "tensorboard._TENSORBOARDX"], {}, "Skipping TensorBoard: .*install tensorboard"),
        (["wandb._WANDB"], {"wandb__enable": True}, r'Skipping Weights & Biases: .*pip install "rtdetr-tool\[wandb\]"'),
        (["mlflow._MLFLOW"], {"mlflow__enable": True}, r'Skipping MLflow: .*pip install "rtdetr-tool\[mlflow\]"'),
    ],
)
def test_a_logger_without_its_package_is_skipped_with_the_pip_command(
    flags, changes, message, make_spec, monkeypatch, caplog, tmp_path
):
    for flag in flags:
        place = "lightning_fabric" if flag.startswith("tensorboard") else "pytorch_lightning"
        monkeypatch.setattr(f"{place}.loggers.{flag}_AVAILABLE", RequirementCache("no-such-package-at-all"))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    loggers = build_loggers(make_spec(**changes), tmp_path)
    assert "CsvTable" in kinds(loggers) and len(loggers) == (2 if changes else 1)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert re.search(message, caplog.text)


def test_weights_and_biases_without_a_login_is_skipped(make_spec, monkeypatch, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert kinds(build_loggers(make_spec(wandb__enable=True), tmp_path)) == ["TensorBoard", "CsvTable"]
    assert "not logged in" in caplog.text


@pytest.mark.parametrize(
    ("machine", "server", "enabled"),
    [
        ("api.wandb.ai", None, True),
        ("api.forge.coreweave.com", None, True),
        ("wandb.example.org", "https://wandb.example.org:8443", True),
        ("wandb.example.org", None, False),
        ("api.wandb.ai", "https://wandb.example.org", False),
    ],
)
def test_a_login_to_the_server_in_use_is_found_in_netrc(machine, server, enabled, monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    if server:
        monkeypatch.setenv("WANDB_BASE_URL", server)
    (tmp_path / "netrc").write_text(f"machine {machine}\n  login user\n  password {'k' * 40}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert is_wandb_enabled(WandbSpec()) is enabled


CALLS = ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize", "after_save_checkpoint")


class Failing(CSVLogger):
    """A user's logger that fails when `call` is called for the second time."""

    def __init__(self, call: str, **arguments):
        super().__init__(**arguments)
        self.calls, inner = 0, getattr(self, call)

        def counted(*args, **kwargs):
            self.calls += 1
            if self.calls > 1 or call == "finalize":
                raise ConnectionError(f"https://me:{SECRET}@host is gone\nand a long tail")
            return inner(*args, **kwargs)

        setattr(self, call, counted)


@pytest.mark.parametrize("call", ["log_metrics", "save", "finalize"])
def test_a_failing_logger_is_reported_once_and_the_run_continues(make_spec, caplog, tmp_path, call):
    service = Failing(call, save_dir=tmp_path / "service")
    result = fit(make_spec(), log_every_n_steps=1, logger=[service])
    assert result.epochs == 1 and service.calls == (1 if call == "finalize" else 2)
    (record,) = (r for r in caplog.records if "host is gone" in r.message)
    assert record.message == "Failing failed, continuing without it: https://***@host is gone"


@pytest.mark.parametrize("call", CALLS)
def test_no_method_of_a_guarded_logger_raises(call, tmp_path):
    class Broken(CSVLogger):
        pass

    setattr(Broken, call, lambda self, *arguments: 1 / 0)
    (guarded,) = guard_loggers([Broken(tmp_path)])
    assert getattr(guarded, call)({}) is None
    assert guard_loggers([guarded]) == [guarded]


def test_a_logger_that_cannot_start_is_skipped(make_spec, caplog, tmp_path):
    (tmp_path / "logs").write_text("a file is in the way")
    result = fit(make_spec(), logger=[CSVLogger(tmp_path / "logs")])
    assert result.epochs == 1
    assert "Skipping CSVLogger: " in caplog.text


class Deleting(pl.Callback):
    """Deletes a folder after the first epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            shutil.rmtree(self.folder)


def test_a_new_csv_file_is_started_when_its_folder_is_deleted(make_spec, caplog):
    spec = make_spec(train__tensorboard=False, train__num_epochs=3)
    folder = Path(spec.train.results_dir)
    result = fit(spec, log_every_n_steps=1, callbacks=[Deleting(folder / "csv_logs")])
    assert result.epochs == 3
    rows = list(csv.DictReader((folder / "csv_logs/version_0/metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows if row["val/mAP_50_95"]] == ["1", "2"]
    assert "failed" not in caplog.text


def test_an_overwritten_csv_file_stops_the_logger_but_not_the_run(make_spec, caplog):
    class Replacing(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            (Path(trainer.loggers[0].log_dir) / "metrics.csv").write_text("other,columns\n1,2\n")

    spec = make_spec(train__tensorboard=False, train__num_epochs=3)
    result = fit(spec, log_every_n_steps=1, callbacks=[Replacing(), NewColumn()])
    assert result.epochs == 3
    assert "The CSV file failed, continuing without it: dict contains fields not in fieldnames" in caplog.text


class NewColumn(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pl_module.log(f"column_{trainer.global_step}", 1.0)


def test_deleting_the_tensorboard_folder_neither_ends_the_run_nor_prints_a_traceback(make_spec, caplog, capfd):
    spec = make_spec(train__num_epochs=3)
    folder = Path(spec.train.results_dir)
    result = fit(spec, log_every_n_steps=1, callbacks=[Deleting(folder / "lightning_logs")])
    assert result.epochs == 3
    assert "Traceback" not in capfd.readouterr().err


def test_only_the_first_process_logs_to_services(make_spec, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("RANK", "1")
    assert kinds(build_loggers(make_spec(mlflow__enable=True), tmp_path)) == ["TensorBoard", "CsvTable"]
    assert caplog.text == ""


def test_mlflow_address_is_that_of_the_spec_then_the_environment_then_the_results_folder(
    make_spec, monkeypatch, tmp_path
):
    def address(**changes):
        return mlflow_arguments(make_spec(**changes).mlflow, tmp_path)["tracking_uri"]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://env")
    assert address(mlflow__tracking_uri="https://spec") == "https://spec"
    assert address() == "https://env"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert address() == f"sqlite:///{tmp_path}/mlflow.db"


class TestRealMlflow:
    @pytest.fixture(autouse=True)
    def installed(self, monkeypatch):
        pytest.importorskip("mlflow")
        pytest.importorskip("sqlalchemy")
        pytest.importorskip("alembic")
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def test_a_run_can_be_read_from_the_store_in_its_folder(self, make_spec, monkeypatch, tmp_path):
        from mlflow import MlflowClient

        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        spec = make_spec(
            mlflow__enable=True, mlflow__experiment="cells", mlflow__run_name="first", mlflow__tags={"who": "me"}
        )
        result = fit(spec, log_every_n_steps=1)
        assert "MLFLOW_TRACKING_URI" not in os.environ
        client = MlflowClient(f"sqlite:///{spec.train.results_dir}/mlflow.db")
        experiment = client.get_experiment_by_name("cells")
        assert experiment.artifact_location == (Path(spec.train.results_dir) / "mlflow_artifacts").as_uri()
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.info.run_name == "first" and run.data.tags["who"] == "me" and run.info.status == "FINISHED"
        assert run.data.metrics["val/mAP_50_95"] == pytest.approx(result.metrics["val/mAP_50_95"])
        losses = client.get_metric_history(run.info.run_id, "train/loss_step")
        assert [point.step for point in losses] == [0, 1]
        assert list((tmp_path / "elsewhere").iterdir()) == []

        again = make_spec(mlflow__enable=True, mlflow__run_id=run.info.run_id)
        (service,) = (x for x in build_loggers(again, Path(spec.train.results_dir)) if isinstance(x, MLflow))
        service.log_metrics({"val/mAP_50_95": 0.5}, step=2)
        assert client.get_run(run.info.run_id).data.metrics["val/mAP_50_95"] == 0.5

    def test_an_unreachable_server_is_reported_without_its_password(self, make_spec, monkeypatch, caplog, tmp_path):
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        spec = make_spec(mlflow__enable=True, mlflow__tracking_uri=f"http://me:{SECRET}@127.0.0.1:9")
        assert "MLflow" not in kinds(build_loggers(spec, tmp_path))
        assert "Skipping MLflow" in caplog.text and "127.0.0.1" in caplog.text and SECRET not in caplog.text
        assert SECRET not in os.environ.get("MLFLOW_TRACKING_URI", "")
