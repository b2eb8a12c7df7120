"""Build the loggers of a run: CSV always; TensorBoard, Weights & Biases and MLflow if enabled."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from rtdetr_tool.data.decoding import content_size, decode_content
from rtdetr_tool.redaction import mask_secrets, without_secrets
from rtdetr_tool.spec import ExperimentSpec, MlflowSpec, WandbSpec, spec_to_dict
from rtdetr_tool.spec.metric_names import VAL_MAP
from rtdetr_tool.status import current_status, process_rank
from rtdetr_tool.training.logger_failures import reason_of

logger = logging.getLogger(__name__)

_WANDB_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # the second since wandb 0.31 at the latest
_LOGGED_SECTIONS = ("model", "dataset", "train")
_TRACKING_URI = "MLFLOW_TRACKING_URI"
# By default, MLflow logs to the console, sends usage statistics, and waits for a server for minutes.
_MLFLOW_ENVIRONMENT = {
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def build_loggers(spec: ExperimentSpec, folder: Path) -> list[Logger]:
    """CSV in `csv_logs`, TensorBoard in `lightning_logs`, and, in the first process, the enabled services.

    Loggers other than CSV that cannot be created are skipped with a warning. `guard_loggers` keeps the others from
    ending the run.
    """
    numbers = [int(d.name[8:]) for d in folder.glob("csv_logs/version_*") if d.name[8:].isdigit()]
    version = max(numbers, default=-1) + 1
    loggers: list[Logger] = [CsvTable(folder, name="csv_logs", version=version)]
    if spec.train.tensorboard:
        tensorboard = _create_logger(
            TensorBoard.title, "tensorboard", TensorBoard, save_dir=folder, name="lightning_logs", version=version
        )
        loggers = [*tensorboard, *loggers]
    if process_rank() > 0:
        return loggers
    if is_wandb_enabled(spec.wandb):
        loggers += _create_logger(
            WeightsAndBiases.title, '"rtdetr-tool[wandb]"', WeightsAndBiases, **wandb_arguments(spec.wandb, folder)
        )
    if spec.mlflow.enable:
        arguments = mlflow_arguments(spec.mlflow, folder)
        loggers += _create_logger(MLflow.title, '"rtdetr-tool[mlflow]"', MLflow, **arguments)
    return loggers


def _create_logger(title: str, package: str, kind: type[Logger], **arguments: Any) -> list[Logger]:
    """A list of the logger, empty if it cannot be created. `package` is what pip installs for it."""
    try:
        with _arguments_without_secrets():
            return [kind(**arguments)]
    except ModuleNotFoundError as error:
        reason = f"it requires {error.name or 'a package'}: pip install {package}"
    except Exception as error:  # the services have no common base class
        reason = reason_of(error)
    logger.warning("Skipping %s: %s", title, reason)
    return []


@contextmanager
def _arguments_without_secrets() -> Iterator[None]:
    """Mask secrets in the command line, which the services record when they start."""
    original, sys.argv = sys.argv, [mask_secrets(text) for text in sys.argv]
    try:
        yield
    finally:
        sys.argv = original


class CsvTable(CSVLogger):
    """Lightning's CSV logger, but starting a new file if the folder is deleted during the run."""

    title = "The CSV file"

    def save(self) -> None:
        current_status().confirm_folder()
        writer = self.experiment
        if isinstance(writer, ExperimentWriter) and not Path(writer.metrics_file_path).is_file():
            Path(writer.log_dir).mkdir(parents=True, exist_ok=True)
            writer.metrics_keys = []
        super().save()


@runtime_checkable
class ImageLogger(Protocol):
    """A logger that shows images."""

    def log_encoded_images(self, images: Mapping[str, bytes], step: int) -> None:
        """Log PNG and JPEG images by name."""


def log_images(loggers: Sequence[Logger], images: Mapping[str, bytes], step: int) -> None:
    """Log images (PNG, JPEG) by name with each logger that can show them."""
    for target in loggers:
        if isinstance(target, ImageLogger):
            target.log_encoded_images(images, step)


def log_fields(loggers: Sequence[Logger], spec: ExperimentSpec) -> None:
    """Log the fields of model, data and training as TensorBoard's hyperparameters, with secrets masked."""
    sections = {name: section for name, section in spec_to_dict(spec).items() if name in _LOGGED_SECTIONS}
    for target in loggers:
        if isinstance(target, TensorBoard):
            target.log_hyperparams(dict(_flat(without_secrets(sections))))


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | float]]:
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value if isinstance(value, (bool, int, float)) else str(value)


def save_table(loggers: Sequence[Logger]) -> None:
    """Write the metrics logged so far to the CSV file; by itself it does so every 100 steps."""
    for target in loggers:
        if isinstance(target, CsvTable):
            target.save()


def _decoded(images: Mapping[str, bytes]) -> dict[str, NDArray[np.uint8]]:
    """The images by name, [H, W, 3] RGB."""
    return {name: decode_content(content, name).permute(1, 2, 0).numpy() for name, content in images.items()}


class TensorBoard(TensorBoardLogger):
    title = "TensorBoard"

    def log_hyperparams(self, params: Any, metrics: Any = None, step: int | None = None) -> None:
        """Show values next to the validation score; Lightning's method would log a score of -1 for it."""
        from torch.utils.tensorboard.summary import hparams

        for summary in hparams(dict(params), {VAL_MAP: 0}):  # names the score; its values are those that are logged
            self.experiment.file_writer.add_summary(summary)

    def log_encoded_images(self, images: Mapping[str, bytes], step: int) -> None:
        """Write the encoded images as they are; `add_image` would compress the pixels again, 0.2 s per chart."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        for name, content in images.items():
            width, height = content_size(content, name)
            image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
            self.experiment.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)


class WeightsAndBiases(WandbLogger):
    title = "Weights & Biases"

    def log_encoded_images(self, images: Mapping[str, bytes], step: int) -> None:
        for name, image in _decoded(images).items():
            self.log_image(name, [image])

    def __init__(self, **arguments: Any) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")  # it prints about ten lines; our message is enough
        super().__init__(**arguments)
        getattr(self, "_wandb_init", {}).pop("anonymous", None)  # always passed by Lightning; W&B warns that it is gone
        run = self.experiment  # connects
        logger.info("Weights & Biases: %s", getattr(run, "url", None) or f"offline, in {getattr(run, 'dir', '?')}")


class MLflow(MLFlowLogger):
    title = "MLflow"

    def log_encoded_images(self, images: Mapping[str, bytes], step: int) -> None:
        for name, image in _decoded(images).items():
            self.experiment.log_image(self.run_id, image, key=name.replace("/", "-"), step=step)

    def __init__(self, tracking_uri: str, **arguments: Any) -> None:
        for name, value in _MLFLOW_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if tracking_uri.startswith("sqlite:") and importlib.util.find_spec("sqlalchemy") is None:
            raise ModuleNotFoundError(name="sqlalchemy")  # mlflow-skinny neither depends on it nor reports it
        original = os.environ.get(_TRACKING_URI)
        try:
            super().__init__(tracking_uri=tracking_uri, **arguments)
            _ = self.experiment  # connects
        finally:  # MLflow sets the variable, and the next run in this process would take it for the user's
            os.environ.pop(_TRACKING_URI, None)
            if original is not None:
                os.environ[_TRACKING_URI] = original


def is_wandb_enabled(settings: WandbSpec) -> bool:
    """Whether Weights & Biases is enabled and there is a login."""
    if not settings.enable:
        return False
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") == "offline":
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    logins = netrc.read_text(errors="ignore") if netrc.is_file() else ""
    private_server = urlsplit(os.environ.get("WANDB_BASE_URL", "")).hostname
    if any(host in logins for host in ([private_server] if private_server else _WANDB_HOSTS)):
        return True
    logger.info("Skipping Weights & Biases: not logged in (run `wandb login`, or set WANDB_API_KEY)")
    return False


def wandb_arguments(settings: WandbSpec, folder: Path) -> dict[str, Any]:
    """The arguments of `WandbLogger`, with secrets masked in the texts that the service stores."""
    return {
        "save_dir": folder,
        "project": mask_secrets(settings.project),
        "entity": settings.entity or None,
        "name": mask_secrets(settings.name),
        "group": mask_secrets(settings.group) if settings.group else None,
        "id": settings.run_id or None,
        "tags": without_secrets(settings.tags),
        "save_code": settings.save_code,
        "sync_tensorboard": settings.sync_tensorboard,
    }


def mlflow_arguments(settings: MlflowSpec, folder: Path) -> dict[str, Any]:
    """The arguments of `MLFlowLogger`. Without an address, runs are stored in a SQLite file in the results folder."""
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
