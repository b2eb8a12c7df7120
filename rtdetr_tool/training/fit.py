"""Run a whole training from a spec, as `rtdetr train` does."""

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

from rtdetr_tool.errors import Preempted
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.spec import ExperimentSpec
from rtdetr_tool.spec.metric_names import TRAIN_LOSS, VAL_LOSS, logged_name
from rtdetr_tool.spec.recipe import recipe_line
from rtdetr_tool.status import current_status
from rtdetr_tool.training.auto_batch_size import AUTO, resolve_batch_size
from rtdetr_tool.training.batch_norm_check import check_batch_norms
from rtdetr_tool.training.callbacks.early_stopping import EarlyStopping
from rtdetr_tool.training.callbacks.lookup import find_callback
from rtdetr_tool.training.callbacks.periodic_checkpoint import checkpoints_of
from rtdetr_tool.training.checkpointing import find_resume_path, remove_unfinished
from rtdetr_tool.training.compilation import explain_compilation
from rtdetr_tool.training.datamodule import DetectionDataModule
from rtdetr_tool.training.fit_result import FitResult, show_result
from rtdetr_tool.training.lightning_output import quiet_lightning
from rtdetr_tool.training.logger_failures import log_thread_failures
from rtdetr_tool.training.loggers import log_fields
from rtdetr_tool.training.module import DetectorModule
from rtdetr_tool.training.out_of_memory import explain_out_of_memory
from rtdetr_tool.training.torch_classes import check_classes
from rtdetr_tool.training.trainer import build_trainer, seed_run

logger = logging.getLogger(__name__)


def fit(
    spec: ExperimentSpec,
    callbacks: Sequence[Callback] = (),
    build_module: Callable[[ExperimentSpec, ClassMap], DetectorModule] = DetectorModule,
    run_test: bool = False,
    **trainer_kwargs: Any,
) -> FitResult:
    """Train a model, resuming from `train.resume_training_checkpoint_path` or the results folder's latest checkpoint.

    `build_module` builds the module; distillation passes its own. With `run_test`, the best weights are tested
    afterwards. With `train.is_dry_run`, everything is built and one batch passes forwards and backwards through the
    model, but nothing is trained or written.
    """
    with quiet_lightning():
        return _fit(spec, callbacks, build_module, run_test, **trainer_kwargs)


def _fit(
    spec: ExperimentSpec,
    callbacks: Sequence[Callback],
    build_module: Callable[[ExperimentSpec, ClassMap], DetectorModule],
    run_test: bool,
    **trainer_kwargs: Any,
) -> FitResult:
    logger.info("%s", recipe_line(spec))
    check_classes(spec.train.optim)
    seed_run(spec.train.seed)
    datamodule = DetectionDataModule(spec)
    datamodule.setup("fit")
    module = build_module(spec, datamodule.class_map)
    if spec.dataset.batch_size == AUTO:
        module.spec = resolved = resolve_batch_size(module.spec, module)
        dataset = replace(resolved.dataset, num_classes=spec.dataset.num_classes)  # the module has counted the classes
        datamodule.spec = spec = replace(resolved, dataset=dataset)
    check_batch_norms(spec, module.detector, len(datamodule.dataset("train")))
    if spec.train.is_dry_run:
        with explain_out_of_memory(spec):
            return dry_run(spec, module, datamodule)
    trainer = build_trainer(spec, callbacks=callbacks, **trainer_kwargs)
    folder = spec.train.results_dir or "."
    if trainer.is_global_zero:
        remove_unfinished(folder)
        log_fields(trainer.loggers, spec)
    resume = find_resume_path(folder, spec.train.resume_training_checkpoint_path)
    if resume:
        _log_resume(resume, explicit=bool(spec.train.resume_training_checkpoint_path))
    with explain_out_of_memory(spec), explain_compilation(), forward_signals(trainer), log_thread_failures():
        trainer.fit(module, datamodule, ckpt_path=str(resume) if resume else None)
        result = _result(trainer, module, resume)
        if run_test:
            best = result.best_path or result.latest_path
            trainer.test(module, datamodule, ckpt_path=str(best) if best else None, verbose=False)
            result.metrics.update(_metrics(trainer, module))
    show_result(result)
    return result


@contextmanager
def forward_signals(trainer: Trainer) -> Iterator[None]:
    """Forward a signal that ended this process to the processes it started, which may be waiting for it."""
    try:
        yield
    except Preempted:
        launcher: Any = trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signal.SIGTERM)
        raise


def dry_run(spec: ExperimentSpec, module: DetectorModule, datamodule: DetectionDataModule) -> FitResult:
    """Try once the checkpoint to resume from or the initial weights, the optimizer, a training batch with
    gradients and a validation batch."""
    trainer = build_trainer(spec, logger=False)
    device = trainer.strategy.root_device if trainer.num_devices == 1 else torch.device("cpu")
    resume = find_resume_path(spec.train.results_dir or ".", spec.train.resume_training_checkpoint_path)
    if resume is not None:
        module.check_resume(resume)
    else:
        module.load_initial_weights()
    module.to(device).train()
    module.configure_optimizers()
    batch = next(iter(datamodule.loader("train"))).to(device)
    with trainer.precision_plugin.forward_context():
        loss = module.compute_losses(batch)["loss"]
    loss.backward()
    module.zero_grad(set_to_none=True)
    metrics: dict[str, float | None] = {TRAIN_LOSS: loss.item()}
    if spec.dataset.val_data_sources:
        module.eval()
        batch = next(iter(datamodule.loader("val"))).to(device)
        with torch.inference_mode(), trainer.precision_plugin.forward_context():
            predictions = module.detector(module.prepare_images(batch, multi_scale=False))
            metrics[VAL_LOSS] = module.criterion(predictions, batch.targets)["loss"].item()
    logger.info("Dry run: built everything and ran one batch (%s); nothing was trained or written", metrics)
    return FitResult(metrics=metrics, dry_run=True)


def _log_resume(path: Path, explicit: bool) -> None:
    reason = "train.resume_training_checkpoint_path" if explicit else "the latest checkpoint in this results folder"
    message = f"Resuming from {path} ({reason})"
    current_status().running(message)
    logger.info(message)


def _metrics(trainer: Trainer, module: DetectorModule) -> dict[str, float | None]:
    """The latest metrics, with undefined scores as None."""
    logged = trainer.callback_metrics
    return {name: float(value) for name, value in logged.items() if logged_name(name) == name} | module.metrics


def _result(trainer: Trainer, module: DetectorModule, resume: Path | None) -> FitResult:
    result = FitResult(
        metrics=_metrics(trainer, module), latest_path=resume, resumed_from=resume, epochs=trainer.current_epoch
    )
    saver = checkpoints_of(trainer)
    if saver is None:  # with a sharded strategy
        return result
    if trainer.global_step and not saver.ended_epochs and saver.latest_path is None and resume is not None:
        stopping = find_callback(trainer, EarlyStopping)
        if stopping is not None and stopping.stopped:
            reason = f"early stopping ended the run in {resume}. Raise train.early_stopping.patience to train longer."
        else:
            reason = f"{resume} already has train.num_epochs epochs. Raise train.num_epochs to train longer."
        logger.warning("Nothing to train: %s", reason)
    return replace(
        result,
        best_score=saver.best_score,
        best_epoch=saver.best_epoch,
        best_metric=saver.monitor,
        best_path=saver.best_path,
        latest_path=saver.latest_path or resume,
    )
