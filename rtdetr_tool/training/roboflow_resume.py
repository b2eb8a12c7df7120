"""Make checkpoints of Roboflow's training loops resumable (weights and epoch only)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl

from rtdetr_tool.checkpoints.detector_file import read_detector
from rtdetr_tool.checkpoints.family_weights import weights_of
from rtdetr_tool.checkpoints.identify import TAO_MODEL, TAO_PREFIX, state_dict_of
from rtdetr_tool.checkpoints.io import load_checkpoint, save_checkpoint
from rtdetr_tool.checkpoints.metadata import KEY
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families import all_families


def convert_legacy_checkpoint(old_path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
    """Convert an RF-DETR `.pth` to a checkpoint for `trainer.fit(ckpt_path=...)`.

    The run continues from its weights with the next epoch. Optimizer and schedule start from scratch.

    Raises:
        CheckpointError: the file is not an RF-DETR checkpoint of Roboflow's package, or cannot be read.
    """
    save_checkpoint(training_state_from_file(old_path), new_path)


def is_convertible(payload: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is from another program and has the epoch that it was saved after."""
    tensors = state_dict_of(payload)
    formats = (entry for family in all_families() for entry in weights_of(family).FORMATS)
    return any(entry.recognize(tensors) is not None for entry in formats if entry.holds_epoch)


def training_state_from_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """An RF-DETR checkpoint as that of a run that has completed the same epoch."""
    file = read_detector(os.fspath(path))
    if file.format is None or not file.format.holds_epoch:
        raise CheckpointError(
            f"{path} is {file.what}, not an RF-DETR checkpoint of Roboflow's package. Set train.pretrained_model_path "
            "to it to start from its weights."
        )
    epoch = load_checkpoint(path).get("epoch")
    done = epoch + 1 if isinstance(epoch, int) and epoch >= 0 else 0
    return {
        "state_dict": {f"{TAO_PREFIX}{name}": tensor for name, tensor in file.weights.items()},
        **TAO_MODEL,
        KEY: file.meta,
        "epoch": done,
        "global_step": 0,
        "pytorch-lightning_version": pl.__version__,
        "loops": _loops_after(done),
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
    }


def _loops_after(epochs: int) -> dict[str, Any]:
    """Lightning's loop state of a run after `epochs` epochs and zero optimizer steps."""
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    progress: Any = trainer.fit_loop.epoch_progress
    for counters in (progress.total, progress.current):
        counters.ready = counters.started = counters.processed = counters.completed = epochs
    return {
        "fit_loop": trainer.fit_loop.state_dict(),
        "validate_loop": trainer.validate_loop.state_dict(),
        "test_loop": trainer.test_loop.state_dict(),
        "predict_loop": trainer.predict_loop.state_dict(),
    }
