"""The metrics of a training run over its steps, read from the CSV files of all its starts."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rtdetr_tool.files import read_limited
from rtdetr_tool.spec.metric_names import logged_name

_MAX_BYTES = 256 << 20


@dataclass
class Curve:
    """The values of one metric; a run that resumed from an earlier step replaces the values after it."""

    steps: list[int] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, step: int, epoch: int, value: float) -> None:
        while self.steps and self.steps[-1] >= step:
            self.steps.pop(), self.epochs.pop(), self.values.pop()
        self.steps.append(step)
        self.epochs.append(epoch)
        self.values.append(value)


def read_history(folder: Path) -> dict[str, Curve]:
    """The curves by metric name, from `csv_logs/version_*/metrics.csv` in a results folder; {} without such files."""
    curves: dict[str, Curve] = {}
    for file in sorted(folder.glob("csv_logs/version_*/metrics.csv"), key=_version):
        for row in _rows(file):
            try:
                step, epoch = int(float(row["step"])), int(float(row["epoch"]))
            except (KeyError, TypeError, ValueError):
                continue
            for name, text in row.items():
                if name not in ("step", "epoch") and (value := _number(text)) is not None:
                    curves.setdefault(logged_name(name), Curve()).add(step, epoch, value)
    return curves


def _version(file: Path) -> int:
    number = file.parent.name.removeprefix("version_")
    return int(number) if number.isdigit() else -1


def _rows(file: Path) -> Iterator[dict[str, str]]:
    try:
        text = read_limited(file, _MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return
    yield from csv.DictReader(text.splitlines())


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
