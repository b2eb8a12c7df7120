"""Save checkpoints at fixed intervals, the best one, and the latest link (see `training.checkpointing`)."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from rtdetr_tool.spec.metric_names import VAL_MAP, averaged_name, logged_name
from rtdetr_tool.status import current_status
from rtdetr_tool.training.best_selection import SmoothedSelection
from rtdetr_tool.training.callbacks.ema import average_of
from rtdetr_tool.training.callbacks.lookup import find_callback
from rtdetr_tool.training.checkpoint_ranking import KINDS, CheckpointRanking
from rtdetr_tool.training.checkpointing import BEST, BEST_BY_KIND, LATEST, point_link, share_file

logger = logging.getLogger(__name__)


def checkpoints_of(trainer: Trainer) -> PeriodicCheckpoint | None:
    """The trainer's checkpoint callback, if it is from `build_trainer`."""
    return find_callback(trainer, PeriodicCheckpoint)


class PeriodicCheckpoint(Checkpoint):
    """Write the checkpoint files of a run to `folder`, its results folder, and those of a `ranking`."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        interval: int = 1,
        unit: str = "epoch",
        monitor: str = VAL_MAP,
        ranking: CheckpointRanking | None = None,
        skip_epochs: int = 0,
        smoothing: float = 0.0,
    ) -> None:
        self.folder = Path(folder)
        self.interval, self.unit, self.monitor, self.ranking = interval, unit, logged_name(monitor), ranking
        self.skip_epochs = skip_epochs  # which cannot be the best one
        self.selection = SmoothedSelection(smoothing)
        self.best_score: float | None = None
        self.best_epoch: int | None = None
        self.best_of_each: dict[str, float] = {}  # by kind of weights, with train.ema.validate_both
        self._best_kind = "raw"
        self.latest_path: Path | None = None
        # Further names: "latest", "best", "raw" or "ema" (the best file of this kind of weights) -> file name.
        self.other_names: Mapping[str, str] = {}
        self._last_step = 0
        self._saved_step: int | None = None
        self._validated_epoch = -1
        self.ended_epochs = 0  # since the start or the resume

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
        if step % self.interval == 0 and not self._replaced:
            self._save_resumable(trainer, self.folder / f"model_epoch_{trainer.current_epoch:03d}_step_{step:05d}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._validated_epoch = trainer.current_epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch
        self.ended_epochs += 1
        improved, ranked = self._update_best(trainer, epoch), self._rank(trainer, epoch)
        if ranked is not None and self._replaced:
            self._save_resumable(trainer, ranked, improved)
        elif self._is_due(trainer, epoch):
            self._save_resumable(trainer, self.folder / f"model_epoch_{epoch:03d}", improved, ranked)
        else:
            if ranked is not None:
                self._save_ranked(trainer, ranked, {})
            if improved:
                self._save_best(trainer, {})
                self._link_other_names(trainer)
        if ranked is not None and self.ranking is not None and trainer.is_global_zero:
            self.ranking.remove_dropped()

    @property
    def _replaced(self) -> bool:
        """Whether the ranked checkpoints replace those at intervals."""
        return self.ranking is not None and self.ranking.replaces_periodic

    def _is_due(self, trainer: Trainer, epoch: int) -> bool:
        """Whether the end of this epoch is saved regardless of its scores. The end of a run is, unless others replace
        it."""
        last = trainer.max_epochs is not None and epoch + 1 >= trainer.max_epochs
        if last or trainer.should_stop:
            return not (self._replaced and self.ranking is not None and self.ranking.entries)
        return self.unit == "epoch" and (epoch + 1) % self.interval == 0 and not self._replaced

    def _rank(self, trainer: Trainer, epoch: int) -> Path | None:
        """The path, without suffix, of the checkpoint of this epoch if it is among the best."""
        if self.ranking is None:
            return None
        name = self.ranking.admit(
            trainer.callback_metrics, epoch, trainer.global_step, validated=self._validated_epoch == epoch
        )
        return None if name is None else self.ranking.folder / name

    def save_now(self, trainer: Trainer) -> Path:
        """Save the current state unless it is saved already; the path of the newest checkpoint."""
        epoch, step = trainer.current_epoch, trainer.global_step
        if self._saved_step == step and self.latest_path is not None:
            return self.latest_path
        return self._save_resumable(trainer, self.folder / f"model_epoch_{epoch:03d}_step_{step:05d}")

    def _update_best(self, trainer: Trainer, epoch: int) -> bool:
        """Whether this epoch was validated and is better than all before it."""
        scores = self.scores(trainer)
        if not scores or self._validated_epoch != epoch:
            return False
        compared = self.selection.smoothed(scores)
        if epoch < self.skip_epochs:
            return False
        if len(scores) > 1:
            self._save_best_of_each(trainer, compared)
        self._best_kind = max(compared, key=lambda kind: compared[kind])
        if not self.selection.admits(compared[self._best_kind]):
            return False
        self.best_score, self.best_epoch = scores[self._best_kind], epoch
        return True

    def scores(self, trainer: Trainer) -> dict[str, float]:
        """The scores of the latest validation by kind of weights. Of equal scores, the trained weights win.

        Undefined scores are not logged; scores that are not finite (from a user's own metric) are ignored as well.
        """
        ema = average_of(trainer)
        names = {"raw" if ema is None or ema.validate_original_weights else "ema": self.monitor}
        if ema is not None and ema.validates_both:
            names = {"raw": self.monitor, "ema": averaged_name(self.monitor)}
        logged = {kind: trainer.callback_metrics.get(name) for kind, name in names.items()}
        scores = {kind: float(score) for kind, score in logged.items() if score is not None}
        return {kind: score for kind, score in scores.items() if math.isfinite(score)}

    def _save_best_of_each(self, trainer: Trainer, scores: Mapping[str, float]) -> None:
        for kind, score in scores.items():
            if score > self.best_of_each.get(kind, -math.inf):
                self.best_of_each[kind] = score
                self._save(trainer, self.folder / BEST_BY_KIND[kind], averages=kind == "ema")

    def _save_resumable(self, trainer: Trainer, stem: Path, improved: bool = False, ranked: Path | None = None) -> Path:
        """Write the checkpoint, its EMA twin, the best file if `improved`, the ranked files and the latest link."""
        saved = self._save_kinds(trainer, stem)
        if improved:
            self._save_best(trainer, saved)
        if ranked is not None:
            self._save_ranked(trainer, ranked, saved)
        latest = self.latest_path = saved.get("ema", saved["raw"])
        self._saved_step = trainer.global_step
        if trainer.is_global_zero:
            _link(point_link, self.folder / LATEST, latest)
        self._link_other_names(trainer)
        return latest

    def _save_kinds(self, trainer: Trainer, stem: Path) -> dict[str, Path]:
        """Write the checkpoint, and its EMA twin if there is an average; their paths by kind of weights."""
        kinds = ("raw", "ema") if average_of(trainer) is not None else ("raw",)
        paths = {kind: stem.with_name(f"{stem.name}{KINDS[kind]}") for kind in kinds}
        return {kind: self._save(trainer, path, averages=kind == "ema") for kind, path in paths.items()}

    def _save_ranked(self, trainer: Trainer, stem: Path, saved: Mapping[str, Path]) -> None:
        """Write the files of a ranked checkpoint, as links to files that are `saved` already."""
        if not saved:
            self._save_kinds(trainer, stem)
        elif trainer.is_global_zero:
            for kind, file in saved.items():
                _link(lambda path, target: share_file(target, path), stem.with_name(f"{stem.name}{KINDS[kind]}"), file)

    def _link_other_names(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        files = {"latest": self.folder / LATEST, "best": self.folder / BEST, self._best_kind: self.folder / BEST}
        files |= {kind: file for kind, name in BEST_BY_KIND.items() if (file := self.folder / name).is_file()}
        for role, name in self.other_names.items():
            if role in files and files[role].is_file():
                _link(point_link, self.folder / name, files[role])

    def _save_best(self, trainer: Trainer, saved: Mapping[str, Path]) -> None:
        """Write the best file: the weights that were validated or, if both were, the better ones.

        If only the averaged weights were validated and the trained ones have another name as well, these of the same
        epoch are written next to them.
        """
        self._place(trainer, self.folder / BEST, self._best_kind, saved)
        average = average_of(trainer)
        if average is not None and not average.validates_both and {"raw", "ema"} <= set(self.other_names):
            other = "raw" if self._best_kind == "ema" else "ema"
            self._place(trainer, self.folder / BEST_BY_KIND[other], other, saved)

    def _place(self, trainer: Trainer, path: Path, kind: str, saved: Mapping[str, Path]) -> None:
        """Write the current weights of this kind to `path`, or share the file that has them already."""
        if kind not in saved:
            self._save(trainer, path, averages=kind == "ema")
        elif trainer.is_global_zero:
            _link(lambda path, target: share_file(target, path), path, saved[kind])

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
            "selection": self.selection.state(),
            "ranked": [] if self.ranking is None else self.ranking.state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.best_epoch = state_dict["best_score"], state_dict["best_epoch"]
        self.best_of_each = dict(state_dict.get("best_of_each", {}))
        self.selection.restore(state_dict.get("selection", {"best": self.best_score}))
        if self.ranking is not None:
            self.ranking.restore(state_dict.get("ranked", []))


def _link(create: Callable[[Path, Path], None], path: Path, saved: Path) -> None:
    """Create a link (or a copy) of a checkpoint. If the folder was deleted since the save, the next save creates it."""
    try:
        if saved.is_file():  # perhaps in another folder
            path.parent.mkdir(parents=True, exist_ok=True)
        create(path, saved)
    except FileNotFoundError:
        current_status().confirm_folder()
        logger.warning("%s was deleted before %s could be copied from it; the next save writes both", saved, path.name)
