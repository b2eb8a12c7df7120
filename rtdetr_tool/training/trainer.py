"""Build a Lightning trainer from a spec."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.strategies import DDPStrategy, Strategy

from rtdetr_tool.errors import SpecError, UserError
from rtdetr_tool.ops.tf32 import set_tf32
from rtdetr_tool.spec import ExperimentSpec
from rtdetr_tool.spec.metric_names import best_score_name
from rtdetr_tool.spec.preset import slow_line
from rtdetr_tool.training.callbacks.batch_preview import BatchPreview
from rtdetr_tool.training.callbacks.drop_path_schedule import DropPathSchedule
from rtdetr_tool.training.callbacks.early_stopping import EarlyStopping
from rtdetr_tool.training.callbacks.ema import ExponentialMovingAverage
from rtdetr_tool.training.callbacks.epoch_resume import EpochResume
from rtdetr_tool.training.callbacks.periodic_checkpoint import PeriodicCheckpoint
from rtdetr_tool.training.callbacks.preemption import PreemptionSave
from rtdetr_tool.training.callbacks.progress import ProgressReport
from rtdetr_tool.training.callbacks.run_report import RunReport
from rtdetr_tool.training.callbacks.status_report import StatusReport
from rtdetr_tool.training.checkpoint_ranking import CheckpointRanking
from rtdetr_tool.training.checkpointing import SafeCheckpointIO
from rtdetr_tool.training.devices import choose_devices, log_device, resolve_precision
from rtdetr_tool.training.lightning_output import quiet_lightning
from rtdetr_tool.training.logger_failures import guard_loggers
from rtdetr_tool.training.loggers import build_loggers
from rtdetr_tool.training.mixed_precision import MIXED_PRECISION
from rtdetr_tool.training.sharding import SafeFSDP, callbacks_for, check_sharding_on_cpu, check_skipping

logger = logging.getLogger(__name__)


def build_trainer(spec: ExperimentSpec, **trainer_kwargs: Any) -> Trainer:
    """A trainer configured by the `train` section of a spec.

    `trainer_kwargs` are passed to `pytorch_lightning.Trainer` and take precedence over the spec, except for `callbacks`
    and `plugins`, which are added to the built-in ones (a progress bar replaces the built-in one). Callbacks that do
    not work with the strategy (`training/sharding.py`) are skipped with a warning.

    fp32 is float32 but for convolutions on GPUs since Ampere, which run in TF32 unless `train.tf32` is off.
    """
    train = spec.train
    accelerator, devices = choose_devices(train.num_gpus, train.gpu_ids, train.accelerator)
    log_device(train.accelerator, accelerator, train.num_gpus)
    precision = resolve_precision(train)
    check_precision(precision, accelerator)
    if accelerator == "gpu" and (line := slow_line(train)):
        logger.info("%s", line)
    several = (devices if isinstance(devices, int) else len(devices)) * train.num_nodes > 1
    if several and train.sync_bn and train.recompute_norms:
        logger.warning("train.recompute_norms does not include the norms that train.sync_bn synchronizes")
    set_tf32(train.tf32, mixed_precision=precision != "fp32")
    torch.backends.cudnn.deterministic = train.cudnn.deterministic
    folder = Path(train.results_dir or ".")
    requested = trainer_kwargs.pop("strategy", None)
    kind = trainer_kwargs.get("accelerator", accelerator)
    strategy = choose_strategy(
        requested or train.distributed_strategy,
        several or requested is not None,
        kind,
        static=train.grad_accum_steps == 1 and not train.supernet.enabled,
    )
    check_skipping(strategy, train.non_finite_loss)
    if kind == "cpu" and several:
        check_sharding_on_cpu(strategy, precision)
    callbacks = [*built_in_callbacks(spec, folder), *checked_callbacks(trainer_kwargs.pop("callbacks", None))]
    callbacks = callbacks_for(strategy, _one_progress_bar(callbacks))
    arguments: dict[str, Any] = {
        "accelerator": accelerator,
        "devices": devices,
        "num_nodes": train.num_nodes,
        "strategy": strategy,
        "precision": MIXED_PRECISION[precision].lightning,
        "sync_batchnorm": several and train.sync_bn and accelerator == "gpu",  # DetectorModule does it on the CPU
        "benchmark": train.cudnn.benchmark,
        "max_epochs": train.num_epochs,
        "accumulate_grad_batches": train.grad_accum_steps,
        "check_val_every_n_epoch": train.validation_interval,
        "gradient_clip_val": train.clip_grad_norm or None,
        "gradient_clip_algorithm": "norm",
        "num_sanity_val_steps": train.num_sanity_val_steps,
        "use_distributed_sampler": False,
        "log_every_n_steps": 10,
        "enable_model_summary": False,
        "default_root_dir": str(folder),
        "limit_val_batches": 1.0 if spec.dataset.val_data_sources else 0,
    }
    if "logger" not in trainer_kwargs:
        arguments["logger"] = build_loggers(spec, folder)
    plugins = [SafeCheckpointIO(), *_as_list(trainer_kwargs.pop("plugins", None))]
    with quiet_lightning():
        trainer = Trainer(callbacks=callbacks, plugins=plugins, **{**arguments, **trainer_kwargs})
    trainer.loggers = guard_loggers(trainer.loggers)
    return trainer


def check_precision(precision: str, accelerator: str) -> None:
    """Raise SpecError for an unknown precision, or fp16 on a CPU (not faster, and not supported by every kernel)."""
    if precision not in MIXED_PRECISION:
        raise SpecError(f"train.precision: {precision!r} is invalid; expected one of {', '.join(MIXED_PRECISION)}")
    if precision == "fp16" and accelerator in ("cpu", "mps"):
        device = "a CPU" if accelerator == "cpu" else "an Apple GPU"
        raise SpecError(f"train.precision: fp16 is not supported on {device}; use bf16 or fp32")


def choose_strategy(requested: str | Strategy, several: bool, accelerator: str, static: bool = True) -> str | Strategy:
    """A configured strategy for `ddp` and `fsdp` (`auto` for one process); other strategies are returned as they are.

    Every trained weight has a gradient in every step, whatever the spec's losses and the batch's objects, so DDP need
    not search for weights without one.

    Args:
        static: every backward pass is followed by an optimizer step, and has the same graph. Otherwise DDP must not
            assume one, because a static graph reduces the gradients of its first batch at once.
    """
    if requested == "fsdp" and accelerator == "mps":
        raise SpecError("train.distributed_strategy: fsdp is not supported on Apple GPUs; use ddp")
    if requested == "fsdp":
        return SafeFSDP() if several else "auto"
    if requested == "ddp":
        if not several:
            return "auto"
        return DDPStrategy(find_unused_parameters=False, gradient_as_bucket_view=True, static_graph=static)
    return requested


def built_in_callbacks(spec: ExperimentSpec, folder: Path) -> list[Callback]:
    """The callbacks of a run, in the order in which they must act."""
    train = spec.train
    monitor = best_score_name(train.best_metric, spec.model.predicts)
    callbacks: list[Callback] = [EpochResume()]
    if train.enable_ema:
        callbacks.append(
            ExponentialMovingAverage(
                decay=train.ema.decay,
                every_n_steps=train.ema.every_n_steps,
                validate_original_weights=train.ema.validate_original_weights,
                cpu_offload=train.ema.cpu_offload,
                tau=train.ema.tau,
                validate_both=train.ema.validate_both,
            )
        )
    if train.report:
        callbacks.append(RunReport(folder, "Distillation" if spec.distill is not None else "Training"))
    callbacks += [ProgressReport(), StatusReport()]  # after reports, which take time that is not training
    if train.early_stopping.enabled:
        callbacks.append(EarlyStopping.from_spec(train.early_stopping, monitor, train.skip_best_epochs))
    if train.drop_path_schedule != "constant":
        callbacks.append(DropPathSchedule(train.drop_path_schedule, train.drop_path_epochs))
    if train.save_dataset_grids:
        callbacks.append(BatchPreview(folder / "dataset_grids"))
    ranking = CheckpointRanking(folder, train.checkpointer, monitor) if train.checkpointer.enable_topk else None
    callbacks.append(
        PeriodicCheckpoint(
            folder,
            train.checkpoint_interval,
            train.checkpoint_interval_unit,
            monitor,
            ranking,
            skip_epochs=train.skip_best_epochs,
            smoothing=train.best_score_smoothing,
        )
    )
    callbacks.append(PreemptionSave())
    return callbacks


def checked_callbacks(callbacks: Any) -> list[Callback]:
    """One callback, several or None as a list. Raises UserError for anything else, such as RF-DETR's dictionary."""
    given: list[Callback] = _as_list(callbacks)
    for callback in given:
        if not isinstance(callback, Callback):
            raise UserError(
                f"callbacks: a {type(callback).__name__} is invalid; expected a pytorch_lightning.Callback, or a list "
                "of them"
            )
    return given


def _one_progress_bar(callbacks: list[Callback]) -> list[Callback]:
    """Drop the built-in progress bar if there is another, since Lightning allows only one."""
    bars = [callback for callback in callbacks if isinstance(callback, ProgressBar)]
    if any(not isinstance(bar, ProgressReport) for bar in bars):
        return [callback for callback in callbacks if not isinstance(callback, ProgressReport)]
    return callbacks


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def seed_run(seed: int) -> None:
    """Seed initial weights and data loaders. A negative seed leaves them random."""
    if seed >= 0:
        pl.seed_everything(seed, workers=True, verbose=False)
