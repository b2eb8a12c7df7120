"""Which checkpoint files a training run writes, under TAO's names, and which one a run resumes from.

::

    model_epoch_007.pth            every checkpoint_interval epochs (counted from 0) and after the last one
    model_epoch_007_step_00320.pth with checkpoint_interval_unit: step, and where a run was told to end or stopped
    model_epoch_007-EMA.pth        its twin when EMA is on: the averages in `state_dict`, the rest as in the other
    rtdetr_model_best.pth          the best validation mAP so far; a file of its own, so the others may be deleted
    rtdetr_model_best_ema.pth      with train.ema.validate_both: the best of the averages, and
    rtdetr_model_best_regular.pth  of the weights being trained; rtdetr_model_best.pth is then the better of the two
    rtdetr_model_latest.pth        link to the newest of them (the twin when there is one)

They are written in this order. The link comes last: a run that is killed in between goes on from the file before, and
writes the same again.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import CheckpointIO

from rtdetr_tool.checkpoints.io import load_checkpoint, save_checkpoint
from rtdetr_tool.checkpoints.metadata import KEY
from rtdetr_tool.errors import CheckpointError, WriteError
from rtdetr_tool.files import replacing, sync_directory
from rtdetr_tool.status import current_status
from rtdetr_tool.training.callbacks.ema import average_of
from rtdetr_tool.training.roboflow_resume import is_resumable, run_state_of

logger = logging.getLogger(__name__)

LATEST, BEST = "rtdetr_model_latest.pth", "rtdetr_model_best.pth"
BEST_OF_EACH = {"ema": "rtdetr_model_best_ema.pth", "raw": "rtdetr_model_best_regular.pth"}
_NUMBERED = re.compile(r"model_epoch_(\d+)(?:_step_(\d+))?(-EMA)?\.pth")
# What `files.replacing` and `_beside` name their files until they are whole.
_UNFINISHED = re.compile(
    r"\.(model_epoch_\d+|rtdetr_model_(latest|best))\S*\.(pth|tmp)|\.(status|experiment)\.\w+\.(json|yaml)"
)


class SafeCheckpointIO(CheckpointIO):
    """Lets Lightning read and write through `checkpoints.io`: atomic, and nothing but weights and plain data."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        try:
            try:
                save_checkpoint(checkpoint, path)
            except (OSError, RuntimeError):
                if Path(path).parent.is_dir():
                    raise
                current_status().confirm_folder()  # somebody has deleted it in the meantime
                save_checkpoint(checkpoint, path)
        except (OSError, RuntimeError) as error:
            reason = error if isinstance(error, OSError) else error.__context__  # torch wraps what the file raises
            if not isinstance(reason, OSError):
                raise
            raise WriteError(
                f"The checkpoint {path} could not be written: {reason.strerror}. Those before it are whole; when there "
                "is room again, the same command goes on from them."
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        payload = load_checkpoint(path)
        if is_resumable(payload):
            return run_state_of(path)
        if KEY not in payload or "loops" not in payload:
            raise CheckpointError(
                f"{path} holds weights but not the state of a training run of this tool, so it cannot be resumed; "
                "give it as train.pretrained_model_path to start from its weights."
            )
        return payload

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def checkpoints_of(trainer: Trainer) -> PeriodicCheckpoint | None:
    """What writes the checkpoints of a trainer, if it is one of `build_trainer`."""
    return next((c for c in trainer.callbacks if isinstance(c, PeriodicCheckpoint)), None)


class PeriodicCheckpoint(Checkpoint):
    """Writes the files named at the top of this module; `folder` is the run's results folder."""

    def __init__(
        self, folder: str | os.PathLike, interval: int = 1, unit: str = "epoch", monitor: str = "val_mAP"
    ) -> None:
        self.folder = Path(folder)
        self.interval, self.unit, self.monitor = interval, unit, monitor
        self.best_score: float | None = None
        self.best_epoch: int | None = None
        self.best_of_each: dict[str, float] = {}  # by the kind of weights, with train.ema.validate_both
        self._best_kind = "raw"
        self.latest_path: Path | None = None
        self._last_step = 0
        self._saved_step: int | None = None
        self._validated_epoch = -1

    @property
    def best_path(self) -> Path | None:
        best = self.folder / BEST
        return best if self.best_score is not None and best.is_file() else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        step = trainer.global_step
        if self.unit != "step" or step == self._last_step:
            return
        self._last_step = step
        if step % self.interval == 0:
            self._save_periodic(trainer, f"model_epoch_{trainer.current_epoch:03d}_step_{step:05d}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._validated_epoch = trainer.current_epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch
        improved = self._improved(trainer, epoch)
        last = trainer.max_epochs is not None and epoch + 1 >= trainer.max_epochs
        due = self.unit == "epoch" and (epoch + 1) % self.interval == 0
        if due or last or trainer.should_stop:
            self._save_periodic(trainer, f"model_epoch_{epoch:03d}", improved)
        elif improved:
            self._save_best(trainer, {})

    def save_now(self, trainer: Trainer) -> Path:
        """Write what the run has reached, unless a file has it already; the newest file."""
        epoch, step = trainer.current_epoch, trainer.global_step
        if self._saved_step != step:
            self._save_periodic(trainer, f"model_epoch_{epoch:03d}_step_{step:05d}")
        return self.latest_path

    def _improved(self, trainer: Trainer, epoch: int) -> bool:
        """Whether this epoch was validated and beats all before it."""
        scores = self._scores(trainer)
        if not scores or self._validated_epoch != epoch:
            return False
        if len(scores) > 1:
            self._save_best_of_each(trainer, scores)
        self._best_kind = max(scores, key=scores.get)
        score = scores[self._best_kind]
        if self.best_score is not None and not score > self.best_score:
            return False
        self.best_score, self.best_epoch = score, epoch
        return True

    def _scores(self, trainer: Trainer) -> dict[str, float]:
        """The scores of the latest validation by the kind of weights; of two equal ones the trained weights count.

        An undefined score is not logged, and one that is not finite (of a callback's own metric) does not count either.
        """
        ema = average_of(trainer)
        names = {"raw" if ema is None or ema.validate_original_weights else "ema": self.monitor}
        if ema is not None and ema.validate_both and "ema" in names:
            names = {"raw": self.monitor.replace("val_", "val_raw_"), **names}
        found = {kind: trainer.callback_metrics.get(name) for kind, name in names.items()}
        scores = {kind: float(score) for kind, score in found.items() if score is not None}
        return {kind: score for kind, score in scores.items() if math.isfinite(score)}

    def _save_best_of_each(self, trainer: Trainer, scores: Mapping[str, float]) -> None:
        for kind, score in scores.items():
            if score > self.best_of_each.get(kind, -math.inf):
                self.best_of_each[kind] = score
                self._save(trainer, self.folder / BEST_OF_EACH[kind], averages=kind == "ema")

    def _save_periodic(self, trainer: Trainer, stem: str, improved: bool = False) -> None:
        """Write the file, its EMA twin, the best file if it is, and the latest link."""
        saved = {"raw": self._save(trainer, self.folder / f"{stem}.pth", averages=False)}
        if average_of(trainer) is not None:
            saved["ema"] = self._save(trainer, self.folder / f"{stem}-EMA.pth", averages=True)
        if improved:
            self._save_best(trainer, saved)
        self.latest_path, self._saved_step = saved.get("ema", saved["raw"]), trainer.global_step
        if trainer.is_global_zero:
            point_link(self.folder / LATEST, self.latest_path)

    def _save_best(self, trainer: Trainer, saved: Mapping[str, Path]) -> None:
        """The best file holds the weights that were validated, of two kinds the better."""
        kind, best = self._best_kind, self.folder / BEST
        if kind not in saved:
            self._save(trainer, best, averages=kind == "ema")
        elif trainer.is_global_zero:
            share_file(saved[kind], best)

    def _save(self, trainer: Trainer, path: Path, averages: bool) -> Path:
        if trainer.is_global_zero:
            current_status().confirm_folder()
        ema = average_of(trainer)
        if ema is not None:
            ema.saving_averages = averages
        try:
            trainer.save_checkpoint(path)
        finally:
            if ema is not None:
                ema.saving_averages = False
        return path

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "best_of_each": dict(self.best_of_each),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.best_epoch = state_dict["best_score"], state_dict["best_epoch"]
        self.best_of_each = dict(state_dict.get("best_of_each", {}))


def find_resume_path(folder: str | os.PathLike, explicit: str | None = None) -> Path | None:
    """The explicit path, else what the latest link in `folder` stands for, else the newest numbered file, else None."""
    if explicit:
        return Path(explicit)
    latest = Path(folder) / LATEST
    if latest.exists():
        return latest.resolve() if latest.is_symlink() else latest
    numbered = [file for file in Path(folder).glob("model_epoch_*.pth") if _NUMBERED.fullmatch(file.name)]
    newest = max(numbered, key=_age, default=None)
    if newest is not None:
        logger.warning("%s leads nowhere; the newest checkpoint beside it is %s.", latest, newest.name)
    return newest


def _age(file: Path) -> tuple[int, float, bool]:
    """Orders numbered files as a run writes them: those of an epoch's steps come before that of its end."""
    epoch, step, twin = _NUMBERED.fullmatch(file.name).groups()
    return int(epoch), int(step) if step else float("inf"), bool(twin)


def remove_unfinished(folder: str | os.PathLike) -> None:
    """Delete what a killed run had not finished writing. Nobody else may be writing there."""
    for file in Path(folder).glob(".*"):
        if _UNFINISHED.fullmatch(file.name):
            file.unlink(missing_ok=True)


def point_link(link: Path, target: Path) -> None:
    """Make `link` a relative symbolic link to `target` in one step; a copy where the file system has no links."""
    _put(link, target, lambda temporary: os.symlink(os.path.relpath(target, link.parent), temporary))


def share_file(source: Path, path: Path) -> None:
    """Make `path` the same file as `source` without using space twice; a copy where that is not possible."""
    _put(path, source, lambda temporary: os.link(source, temporary))


def _put(path: Path, source: Path, linked: Callable[[Path], None]) -> None:
    """Replace `path` by a link that `linked` makes, or else by a copy of `source`."""
    with _beside(path) as temporary:
        try:
            linked(temporary)
        except OSError:
            with replacing(path) as copy:
                shutil.copyfile(source, copy)
        else:
            os.replace(temporary, path)
            sync_directory(path.parent)


@contextlib.contextmanager
def _beside(path: Path):
    """A free name in the same folder, gone afterwards whatever happens (renaming onto the same file keeps both)."""
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
