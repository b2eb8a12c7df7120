"""Rank the checkpoints of a run by a metric and keep the best (`train.checkpointer`)."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rtdetr_tool.errors import SpecError
from rtdetr_tool.spec.checkpointer import CheckpointerSpec, checkpoint_name, metrics_in
from rtdetr_tool.spec.metric_names import logged_name

logger = logging.getLogger(__name__)

KINDS = {"raw": ".pth", "ema": "-EMA.pth"}  # suffix of the file by kind of weights


class CheckpointRanking:
    """Which checkpoints are among the best, and their names. It writes no checkpoint, but removes those it drops.

    Args:
        folder: results folder of the run.
        monitor: metric if the settings have none.
    """

    def __init__(self, folder: str | os.PathLike[str], settings: CheckpointerSpec, monitor: str) -> None:
        self.folder = Path(settings.dirpath or folder)
        self.settings = settings
        self.monitor = settings.monitor or monitor
        self.mode = settings.mode or ("min" if "loss" in self.monitor else "max")
        existing = next(place for place in (self.folder, *self.folder.absolute().parents) if place.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise SpecError(
                f"train.checkpointer.dirpath: {self.folder} is invalid; expected a folder that can be written, but "
                f"{existing} {'cannot be' if existing.is_dir() else 'is a file'}"
            )
        self.entries: list[tuple[str, float]] = []  # name without suffix and score, best first
        self._dropped: list[str] = []
        self._missing: set[str] = set()

    @property
    def replaces_periodic(self) -> bool:
        """Whether checkpoints at intervals are superfluous: not if the metric turned out not to be logged."""
        return self.settings.replace_periodic and self.monitor not in self._missing

    def admit(self, metrics: Mapping[str, Any], epoch: int, step: int, validated: bool) -> str | None:
        """The name of the current checkpoint if it is among the best, otherwise None.

        Validation metrics only count in epochs with a validation. A value that is not finite is never among the best.
        """
        if self.monitor.startswith("val") and not validated:
            return None
        value = _value(metrics, self.monitor)
        if value is None:
            self._warn_missing("monitor", self.monitor, metrics, "no checkpoint is ranked by it")
            return None
        score = float(value)
        if not math.isfinite(score):
            return None
        if len(self.entries) == self.settings.save_top_k and not self._is_better(score, self.entries[-1][1]):
            return None
        kept = self.entries[: self.settings.save_top_k - 1]
        name = self._unused_name(metrics, epoch, step, {entry[0] for entry in kept})
        self._dropped += [old for old, _ in self.entries[self.settings.save_top_k - 1 :] if old != name]
        self.entries = sorted([*kept, (name, score)], key=lambda entry: self._sort_key(entry[1]))
        return name

    def path(self, name: str, kind: str) -> Path:
        return self.folder / f"{name}{KINDS[kind]}"

    def remove_dropped(self) -> None:
        """Delete the files that are no longer among the best; call it when their successor is written."""
        for name in self._dropped:
            for kind in KINDS:
                self.path(name, kind).unlink(missing_ok=True)
        self._dropped = []

    def state(self) -> list[list[Any]]:
        return [list(entry) for entry in self.entries]

    def restore(self, state: list[list[Any]]) -> None:
        """Continue a ranking with the files that still exist."""
        self.entries = [(name, score) for name, score in state if self.path(name, "raw").is_file()]
        self.entries = sorted(self.entries, key=lambda entry: self._sort_key(entry[1]))[: self.settings.save_top_k]

    def _is_better(self, score: float, other: float) -> bool:
        return self._sort_key(score) < self._sort_key(other)

    def _sort_key(self, score: float) -> float:
        return score if self.mode == "min" else -score

    def _unused_name(self, metrics: Mapping[str, Any], epoch: int, step: int, taken: set[str]) -> str:
        pattern = self.settings.filename
        values: dict[str, float] = {"epoch": epoch, "step": step}
        for metric in metrics_in(pattern):
            value = _value(metrics, metric)
            if value is None:
                self._warn_missing("filename", metric, metrics, "using 0 in names")
            else:
                values[metric] = float(value)
        name = first = checkpoint_name(pattern, values, self.settings.auto_insert_metric_name)
        version = 0
        while name in taken:
            version += 1
            name = f"{first}-v{version}"
        return name

    def _warn_missing(self, field: str, metric: str, metrics: Mapping[str, Any], effect: str) -> None:
        if metric not in self._missing:
            self._missing.add(metric)
            known = ", ".join(sorted(name for name in metrics if logged_name(name) == name)) or "no metrics"
            logger.warning(
                "train.checkpointer.%s: %s is not logged, so %s; expected one of %s", field, metric, effect, known
            )


def _value(metrics: Mapping[str, Any], name: str) -> Any:
    """A metric by its name or TAO's; None if it is not logged."""
    return metrics.get(name, metrics.get(logged_name(name)))
