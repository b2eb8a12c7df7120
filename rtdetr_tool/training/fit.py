"""One training run from a spec, as `rtdetr train` does it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer

from rtdetr_tool.data.classes import ClassMap
from rtdetr_tool.errors import Preempted
from rtdetr_tool.spec import ExperimentSpec
from rtdetr_tool.status import current_status
from rtdetr_tool.training.auto_batch_size import AUTO, settle_batch_size
from rtdetr_tool.training.batch_norm_check import check_batch_norms
from rtdetr_tool.training.callbacks.early_stopping import EarlyStopping
from rtdetr_tool.training.checkpointing import checkpoints_of, find_resume_path, remove_unfinished
from rtdetr_tool.training.datamodule import DetectionDataModule
from rtdetr_tool.training.fit_result import FitResult, show_result
from rtdetr_tool.training.lightning_output import quiet_lightning
from rtdetr_tool.training.loggers import failing_threads_logged
from rtdetr_tool.training.module import DetectorModule
from rtdetr_tool.training.out_of_memory import memory_explained
from rtdetr_tool.training.trainer import build_trainer, seed_run

logger = logging.getLogger(__name__)


def fit(
    spec: ExperimentSpec,
    callbacks: Sequence[Callback] = (),
    build_module: Callable[[ExperimentSpec, ClassMap], DetectorModule] = DetectorModule,
    **trainer_kwargs: Any,
) -> FitResult:
    """Train as `spec` says, going on from `train.resume_training_checkpoint_path` or the results folder's newest file.

    `build_module` makes what is trained; distillation gives its own. With `train.is_dry_run` everything is built and
    one batch goes through the model forwards and backwards, but nothing is trained and nothing is written.
    """
    with quiet_lightning():
        return _fit(spec, callbacks, build_module, **trainer_kwargs)


def _fit(
    spec: ExperimentSpec,
    callbacks: Sequence[Callback],
    build_module: Callable[[ExperimentSpec, ClassMap], DetectorModule],
    **trainer_kwargs: Any,
) -> FitResult:
    seed_run(spec.train.seed)
    datamodule = DetectionDataModule(spec)
    datamodule.setup("fit")
    module = build_module(spec, datamodule.class_map)
    if spec.dataset.batch_size == AUTO:
        module.spec = settled = settle_batch_size(module.spec, module)
        own = replace(settled.dataset, num_classes=spec.dataset.num_classes)  # the module's are counted in the data
        datamodule.spec = spec = replace(settled, dataset=own)
    check_batch_norms(spec, module.detector, len(datamodule.dataset("train")))
    if spec.train.is_dry_run:
        with memory_explained(spec):
            return rehearse(spec, module, datamodule)
    trainer = build_trainer(spec, callbacks=callbacks, **trainer_kwargs)
    if trainer.is_global_zero:
        remove_unfinished(spec.train.results_dir)
    resume = find_resume_path(spec.train.results_dir, spec.train.resume_training_checkpoint_path)
    if resume:
        _say_resumed(resume, explicit=bool(spec.train.resume_training_checkpoint_path))
    with memory_explained(spec), children_told(trainer), failing_threads_logged():
        trainer.fit(module, datamodule, ckpt_path=str(resume) if resume else None)
    result = _result(trainer, module, resume)
    show_result(result)
    return result


@contextmanager
def children_told(trainer: Trainer) -> Iterator[None]:
    """Pass a signal that ended this process on to those that it started: they may be waiting for it."""
    try:
        yield
    except Preempted:
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGTERM)
        raise


def rehearse(spec: ExperimentSpec, module: DetectorModule, datamodule: DetectionDataModule) -> FitResult:
    """Everything a run needs, once: initial weights, optimizer, a training batch with gradients, a validation batch."""
    trainer = build_trainer(spec, logger=False)
    device = trainer.strategy.root_device if trainer.num_devices == 1 else torch.device("cpu")
    module.load_initial_weights()
    module.to(device).train()
    module.configure_optimizers()
    batch = next(iter(datamodule.train_dataloader())).to(device)
    with trainer.precision_plugin.forward_context():
        loss = module.compute_losses(batch)["loss"]
    loss.backward()
    module.zero_grad(set_to_none=True)
    metrics = {"train_loss": loss.item()}
    if spec.dataset.val_data_sources:
        module.eval()
        batch = next(iter(datamodule.val_dataloader())).to(device)
        with torch.inference_mode(), trainer.precision_plugin.forward_context():
            predictions = module.detector(module.prepare_images(batch, multi_scale=False))
            metrics["val_loss"] = module.criterion(predictions, batch.targets)["loss"].item()
    logger.info("Dry run: everything was built, one batch went through (%s); nothing was trained or written.", metrics)
    return FitResult(metrics=metrics, dry_run=True)


def _say_resumed(path: Path, explicit: bool) -> None:
    why = "train.resume_training_checkpoint_path" if explicit else "the latest checkpoint of this results folder"
    message = f"Resuming from {path} ({why})."
    current_status().running(message)
    logger.info(message)


def _result(trainer: Trainer, module: DetectorModule, resume: Path | None) -> FitResult:
    checkpoint = checkpoints_of(trainer)
    if trainer.global_step and checkpoint.latest_path is None and resume is not None:
        stopping = next((c for c in trainer.callbacks if isinstance(c, EarlyStopping)), None)
        if stopping is not None and stopping.stopped:
            why = f"early stopping ended the run of {resume}; raise train.early_stopping.patience to train longer"
        else:
            why = f"{resume} already has train.num_epochs epochs"
        logger.warning("Nothing was left to train: %s.", why)
    numbers = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return FitResult(
        metrics={**numbers, **module.metrics},
        best_score=checkpoint.best_score,
        best_epoch=checkpoint.best_epoch,
        best_path=checkpoint.best_path,
        latest_path=checkpoint.latest_path or resume,
        resumed_from=resume,
        epochs=trainer.current_epoch,
    )
