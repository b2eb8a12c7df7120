"""Checkpoints of Roboflow's own training loops as ones that a run here goes on from: weights and epoch, no more."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl

from rtdetr_tool.checkpoints.detector_file import read_detector
from rtdetr_tool.checkpoints.family_weights import weights_of
from rtdetr_tool.checkpoints.io import load_checkpoint, save_checkpoint
from rtdetr_tool.checkpoints.layout import TAO_MODEL, TAO_PREFIX, state_dict_of
from rtdetr_tool.checkpoints.metadata import KEY
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families import all_families


def convert_legacy_checkpoint(old_path: str | os.PathLike, new_path: str | os.PathLike) -> None:
    """Rewrite an RF-DETR `.pth` as a checkpoint for `trainer.fit(ckpt_path=...)`.

    A run goes on with its weights in the epoch after the file's; optimizer and schedule start anew.

    Raises:
        CheckpointError: it is no RF-DETR of Roboflow's, or cannot be read.
    """
    save_checkpoint(run_state_of(old_path), new_path)


def is_resumable(payload: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is another program's that says which epoch it ended in."""
    tensors = state_dict_of(payload)
    formats = (entry for family in all_families() for entry in weights_of(family).FORMATS)
    return any(entry.recognize(tensors) is not None for entry in formats if entry.holds_epoch)


def run_state_of(path: str | os.PathLike) -> dict[str, Any]:
    """An RF-DETR file as the checkpoint of a run that has just ended the file's epoch."""
    file = read_detector(os.fspath(path))
    if file.format is None or not file.format.holds_epoch:
        raise CheckpointError(
            f"{path} is {file.what}, not an RF-DETR checkpoint of Roboflow's; give it as train.pretrained_model_path "
            "to start from its weights."
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
    """Lightning's progress of a run with so many epochs behind it and no optimizer step, which starts at zero again."""
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    for counts in (trainer.fit_loop.epoch_progress.total, trainer.fit_loop.epoch_progress.current):
        counts.ready = counts.started = counts.processed = counts.completed = epochs
    return {
        "fit_loop": trainer.fit_loop.state_dict(),
        "validate_loop": trainer.validate_loop.state_dict(),
        "test_loop": trainer.test_loop.state_dict(),
        "predict_loop": trainer.predict_loop.state_dict(),
    }
