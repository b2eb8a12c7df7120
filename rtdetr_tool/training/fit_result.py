"""The result of a training run, and the table printed at its end."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from rtdetr_tool.log import console
from rtdetr_tool.spec.metric_names import MAIN_SCORES, TRAIN_LOSS, VAL_LOSS, VAL_MAP
from rtdetr_tool.training.distributed import rank


@dataclass
class FitResult:
    """Metrics and checkpoints of a run.

    `metrics` are those of the last validation, None if undefined. Paths are None if nothing was written.
    """

    metrics: dict[str, float | None] = field(default_factory=dict)
    best_score: float | None = None
    best_epoch: int | None = None
    best_metric: str = VAL_MAP  # what best_score is
    best_path: Path | None = None
    latest_path: Path | None = None
    resumed_from: Path | None = None
    epochs: int = 0
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with paths as text."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}


def show_result(result: FitResult) -> None:
    """Print the results as a table on the console of the first process."""
    if rank() != 0:
        return
    table = Table(title="Training", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    if result.best_score is not None:
        table.add_row(f"Best {result.best_metric}", f"{result.best_score:.4f} (epoch {result.best_epoch})")
    for name in (*(f"val/{score}" for score in MAIN_SCORES), VAL_LOSS, TRAIN_LOSS):
        if name in result.metrics:
            value = result.metrics[name]
            table.add_row(f"Last {name}", "-" if value is None else f"{value:.4f}")
    rows: list[tuple[str, Any]] = [("Best checkpoint", result.best_path), ("Latest checkpoint", result.latest_path)]
    for name, path in rows:
        if path is not None:
            table.add_row(name, str(path))
    console().print(table)
