"""Where the numbers of a run go: CSV always; TensorBoard, Weights & Biases and MLflow as the spec says."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from rtdetr_tool.redaction import mask_secrets, without_secrets
from rtdetr_tool.spec import ExperimentSpec, MlflowSpec, WandbSpec
from rtdetr_tool.status import current_status, process_rank

logger = logging.getLogger(__name__)

# What Lightning calls of a logger while a run trains.
_CALLS = ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize", "after_save_checkpoint")
_WANDB_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # the second since wandb 0.31 at the latest
_TRACKING_URI = "MLFLOW_TRACKING_URI"
# Its defaults: lines of its own on the console, figures about its use sent away, minutes of waiting for a server.
_MLFLOW_MANNERS = {
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def build_loggers(spec: ExperimentSpec, folder: Path) -> list[Logger]:
    """CSV under `csv_logs`, TensorBoard under `lightning_logs`, and in the first process the services that are wanted.

    What keeps one of the others than CSV from being made is said; `contained` keeps all of them from ending the run.
    """
    numbers = [int(d.name[8:]) for d in folder.glob("csv_logs/version_*") if d.name[8:].isdigit()]
    version = max(numbers, default=-1) + 1
    loggers: list[Logger] = [Table(folder, name="csv_logs", version=version)]
    if spec.train.tensorboard:
        made = _made(
            "TensorBoard", "tensorboard", TensorBoardLogger, save_dir=folder, name="lightning_logs", version=version
        )
        loggers = [*made, *loggers]
    if process_rank() > 0:
        return loggers
    if wandb_wanted(spec.wandb):
        loggers += _made(
            WeightsAndBiases.title, '"rtdetr-tool[wandb]"', WeightsAndBiases, **wandb_arguments(spec.wandb, folder)
        )
    if spec.mlflow.enable:
        loggers += _made(MLflow.title, '"rtdetr-tool[mlflow]"', MLflow, **mlflow_arguments(spec.mlflow, folder))
    return loggers


def _made(title: str, install: str, kind: type[Logger], **arguments: Any) -> list[Logger]:
    """The logger, or nothing where it cannot be had; `pip install <install>` gets it."""
    try:
        with _arguments_without_secrets():
            return [kind(**arguments)]
    except ModuleNotFoundError as error:
        reason = f"{error.name or 'its package'} is not installed here: pip install {install}"
    except Exception as error:  # of the services, without a common base
        reason = _reason(error)
    logger.warning("%s is left out, the run goes on without it: %s", title, reason)
    return []


@contextmanager
def _arguments_without_secrets() -> Iterator[None]:
    """The services record the command line of the program when they start."""
    given, sys.argv = sys.argv, [mask_secrets(text) for text in sys.argv]
    try:
        yield
    finally:
        sys.argv = given


def _reason(error: Exception) -> str:
    return mask_secrets(str(error).strip().partition("\n")[0] or type(error).__name__)


class Contained:
    """A logger's calls; once one fails, that is said, all later ones do nothing, and the run goes on."""

    def __init__(self, made: Logger) -> None:
        self.title = getattr(made, "title", type(made).__name__)
        self.failed = False
        for name in _CALLS:
            setattr(made, name, self._guarded(getattr(made, name)))

    def _guarded(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def guarded(*arguments: Any, **options: Any) -> Any:
            if self.failed:
                return None
            try:
                return call(*arguments, **options)
            except Exception as error:
                self.failed = True
                logger.warning("%s failed, the run goes on without it: %s", self.title, _reason(error))
                logger.debug("traceback", exc_info=error)
                return None

        return guarded


def contained(loggers: Sequence[Logger]) -> list[Logger]:
    """The loggers, none of which can end a run any more; one that cannot begin is named and left out."""
    kept = []
    for made in loggers:
        try:
            _ = getattr(made, "experiment", None)  # connects, makes folders; Lightning would do it when the run begins
        except Exception as error:
            logger.warning("%s is left out, the run goes on without it: %s", type(made).__name__, _reason(error))
            continue
        if not isinstance(getattr(made, "contained", None), Contained):
            made.contained = Contained(made)  # type: ignore[attr-defined]
        kept.append(made)
    return kept


@contextmanager
def failing_threads_logged() -> Iterator[None]:
    """Keep tracebacks of loggers' threads off the console: what such a thread was for fails, and that is said."""
    before = threading.excepthook

    def log(given: threading.ExceptHookArgs) -> None:
        name = given.thread.name if given.thread else "?"
        logger.debug("the thread %s failed", name, exc_info=given.exc_value)

    threading.excepthook = log
    try:
        yield
    finally:
        threading.excepthook = before


class Table(CSVLogger):
    """Lightning's CSV file, of which each row counts: one whose folder somebody deleted is begun anew."""

    title = "The CSV file"

    def save(self) -> None:
        current_status().confirm_folder()
        writer = self.experiment
        if isinstance(writer, ExperimentWriter) and not Path(writer.metrics_file_path).is_file():
            Path(writer.log_dir).mkdir(parents=True, exist_ok=True)
            writer.metrics_keys = []
        super().save()


class WeightsAndBiases(WandbLogger):
    title = "Weights & Biases"

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        _ = self.experiment  # connects


class MLflow(MLFlowLogger):
    title = "MLflow"

    def __init__(self, tracking_uri: str, **arguments: Any) -> None:
        for name, value in _MLFLOW_MANNERS.items():
            os.environ.setdefault(name, value)
        if tracking_uri.startswith("sqlite:") and importlib.util.find_spec("sqlalchemy") is None:
            raise ModuleNotFoundError(name="sqlalchemy")  # mlflow-skinny does not bring it, and does not say so
        given = os.environ.get(_TRACKING_URI)
        try:
            super().__init__(tracking_uri=tracking_uri, **arguments)
            _ = self.experiment  # connects
        finally:  # MLflow writes into it what it was given, and a next run would take that for the user's
            os.environ.pop(_TRACKING_URI, None)
            if given is not None:
                os.environ[_TRACKING_URI] = given


def wandb_wanted(settings: WandbSpec) -> bool:
    """Enabled, and there is a login."""
    if not settings.enable:
        return False
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") == "offline":
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    logins = netrc.read_text(errors="ignore") if netrc.is_file() else ""
    own_server = urlsplit(os.environ.get("WANDB_BASE_URL", "")).hostname
    if any(host in logins for host in ([own_server] if own_server else _WANDB_HOSTS)):
        return True
    logger.info("Weights & Biases is left out: there is no login (`wandb login`, or WANDB_API_KEY).")
    return False


def wandb_arguments(settings: WandbSpec, folder: Path) -> dict[str, Any]:
    """What `WandbLogger` is made with; texts that the service keeps are without secrets."""
    return {
        "save_dir": folder,
        "project": mask_secrets(settings.project),
        "entity": settings.entity or None,
        "name": mask_secrets(settings.name),
        "id": settings.run_id or None,
        "tags": without_secrets(settings.tags),
        "save_code": settings.save_code,
        "sync_tensorboard": settings.sync_tensorboard,
    }


def mlflow_arguments(settings: MlflowSpec, folder: Path) -> dict[str, Any]:
    """What `MLFlowLogger` is made with; without an address, a SQLite file in the results folder is the store."""
    uri = settings.tracking_uri or os.environ.get(_TRACKING_URI)
    folder = folder.resolve()
    return {
        "tracking_uri": uri or f"sqlite:///{folder.as_posix()}/mlflow.db",
        "artifact_location": None if uri else f"{folder.as_uri()}/mlflow_artifacts",
        "experiment_name": mask_secrets(settings.experiment),
        "run_name": None if settings.run_name is None else mask_secrets(settings.run_name),
        "tags": without_secrets(settings.tags),
        "run_id": settings.run_id,
    }
