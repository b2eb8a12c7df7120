"""The result of a training run, and the table printed at its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from rtdetr_tool.log import console
from rtdetr_tool.training.distributed import rank


@dataclass
class FitResult:
    """Metrics and checkpoints of a run.

    `metrics` are those of the last validation, None if undefined. Paths are None if nothing was written.
    """

    metrics: dict[str, float | None] = field(default_factory=dict)
    best_score: float | None = None
    best_epoch: int | None = None
    best_path: Path | None = None
    latest_path: Path | None = None
    resumed_from: Path | None = None
    epochs: int = 0
    dry_run: bool = False


def show_result(result: FitResult) -> None:
    """Print the results as a table on the console of the first process."""
    if rank() != 0:
        return
    table = Table(title="Training", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    if result.best_score is not None:
        monitor = "val_segm_mAP" if "val_segm_mAP" in result.metrics else "val_mAP"
        table.add_row(f"Best {monitor}", f"{result.best_score:.4f} (epoch {result.best_epoch})")
    for name in ("val_mAP", "val_mAP50", "val_segm_mAP", "val_segm_mAP50", "val_loss", "train_loss"):
        if name in result.metrics:
            value = result.metrics[name]
            table.add_row(f"Last {name}", "-" if value is None else f"{value:.4f}")
    rows: list[tuple[str, Any]] = [("Best checkpoint", result.best_path), ("Latest checkpoint", result.latest_path)]
    for name, path in rows:
        if path is not None:
            table.add_row(name, str(path))
    console().print(table)
