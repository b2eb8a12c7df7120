"""The charts of reports, drawn with matplotlib without a display and without its global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from rtdetr_tool.metrics.analysis import Calibration, Confusion, ErrorType
from rtdetr_tool.reports.drawing import GRAY, INK, SIZE, Drawing, literal, shortened, styled
from rtdetr_tool.reports.page import Chart

_LABELED = 12  # curves with a legend entry; further ones are drawn in gray
_CELLS = 30  # classes up to which a confusion matrix shows its counts and names


@dataclass(frozen=True)
class Series:
    """One line of a chart; `marked` draws its points as well."""

    name: str
    x: Sequence[float] | NDArray[np.float64]
    y: Sequence[float] | NDArray[np.float64]
    marked: bool = False


@styled
def lines(
    name: str,
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str = "",
    *,
    y_limits: tuple[float | None, float | None] = (None, None),
    log: bool = False,
    whole_x: bool = False,
) -> Chart:
    """Curves over a common axis."""
    drawing = Drawing(title)
    axes = drawing.axes
    for number, line in enumerate(series):
        style: dict[str, Any] = {"label": shortened(line.name)}
        if number >= _LABELED:
            style = {"color": GRAY, "linewidth": 0.8, "zorder": 1}
        axes.plot(line.x, line.y, marker="o" if line.marked and len(line.x) <= 60 else None, markersize=3.5, **style)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_ylim(*y_limits)
    if log:
        axes.set_yscale("log")
    if whole_x:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if series:
        more = f"and {len(series) - _LABELED} more in gray" if len(series) > _LABELED else None
        axes.legend(title=more, title_fontsize=8.5, loc="best", ncols=1 if len(series) < 7 else 2)
    return drawing.chart(name)


@styled
def bars(
    name: str,
    title: str,
    values: Mapping[str, Sequence[float]],
    labels: Sequence[str],
    x_label: str = "",
    *,
    percent: bool = False,
) -> Chart:
    """Horizontal bars, one group per label with one bar per entry of `values`."""
    height = max(SIZE[1] * 0.6, 0.9 + (0.14 + 0.16 * len(values)) * len(labels))
    drawing = Drawing(title, (SIZE[0], min(height, 40.0)))
    axes, thickness = drawing.axes, 0.8 / max(1, len(values))
    rows = np.arange(len(labels))
    for number, (group, numbers) in enumerate(values.items()):
        axes.barh(rows + (number - (len(values) - 1) / 2) * thickness, numbers, thickness, label=literal(group))
    axes.set_yticks(rows, [shortened(label) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(x_label)
    if percent:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    if len(values) > 1:
        axes.legend(loc="best")
    return drawing.chart(name)


@styled
def histogram(
    name: str,
    title: str,
    values: Mapping[str, NDArray[np.float64]],
    x_label: str,
    *,
    bins: int = 40,
    log_x: bool = False,
    whole: bool = False,
) -> Chart:
    """Distributions of several groups over the same bins, each as a share of its group; `whole` for counts."""
    drawing = Drawing(title)
    pooled = np.concatenate([*values.values(), np.zeros(0)])
    pooled = pooled[np.isfinite(pooled) & (pooled > 0 if log_x else True)]
    low, high = (float(pooled.min()), float(pooled.max())) if pooled.size else (0.0, 1.0)
    if whole:
        bins = min(bins, max(1, round(high - low) + 1))
        low, high = low - 0.5, high + 0.5
    elif high <= low:
        low, high = (low * 0.9, high * 1.1) if low > 0 else (low - 0.5, high + 0.5)
    edges = np.geomspace(low, high, bins + 1) if log_x and pooled.size else np.linspace(low, high, bins + 1)
    for group, numbers in values.items():
        if len(numbers):
            weights = np.full(len(numbers), 1 / len(numbers))
            drawing.axes.hist(
                numbers, edges.tolist(), weights=weights, histtype="step", linewidth=1.8, label=literal(group)
            )
    if log_x and pooled.size:
        drawing.axes.set_xscale("log")
        drawing.axes.xaxis.set_major_formatter("{x:g}")
        drawing.axes.xaxis.set_minor_formatter("{x:g}")
    drawing.axes.set_xlabel(x_label)
    drawing.axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if len(values) > 1:
        drawing.axes.legend(loc="best")
    return drawing.chart(name)


@styled
def heat(name: str, title: str, grid: NDArray[np.float64], x_label: str, y_label: str) -> Chart:
    """A density over the unit square, (0, 0) at the upper left."""
    drawing = Drawing(title, (SIZE[1] + 0.8, SIZE[1]))
    drawing.axes.grid(visible=False)
    drawing.axes.imshow(grid, cmap="Blues", extent=(0, 1, 1, 0), aspect="equal", interpolation="nearest")
    drawing.axes.set_xlabel(x_label)
    drawing.axes.set_ylabel(y_label)
    return drawing.chart(name)


@styled
def confusion(name: str, confusion: Confusion) -> Chart:
    """A confusion matrix: colors are shares of each row, numbers are counts."""
    matrix = confusion.matrix
    labels = [*(shortened(label, 18) for label in confusion.names), "background"]
    named = len(labels) <= _CELLS + 1
    side = min(14.0, 2.2 + 0.42 * len(labels)) if named else 8.0
    drawing = Drawing(f"Confusion at score {confusion.threshold:.2f}", (max(side, 4.6), max(side * 0.9, 4.0)))
    axes = drawing.axes
    axes.grid(visible=False)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if named:
        axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(labels)), labels)
        for row, column in zip(*np.nonzero(matrix), strict=True):
            color = "white" if shares[row, column] > 0.55 else INK
            axes.text(column, row, f"{matrix[row, column]}", ha="center", va="center", color=color, fontsize=8)
    return drawing.chart(name)


@styled
def reliability(name: str, calibration: Calibration) -> Chart:
    """Share of correct detections against score, by bins."""
    ece = "-" if calibration.ece is None else f"{calibration.ece:.3f}"
    drawing = Drawing(f"Calibration (ECE {ece})")
    axes, filled = drawing.axes, calibration.counts > 0
    widths = np.diff(calibration.edges)
    axes.bar(
        calibration.edges[:-1][filled],
        calibration.accuracy[filled],
        widths[filled] * 0.94,
        align="edge",
        label="share of correct detections",
    )
    axes.plot([0, 1], [0, 1], color="#5b6675", linestyle="--", linewidth=1.2, label="perfect calibration")
    axes.plot(calibration.confidence[filled], calibration.accuracy[filled], "o", color="#d1570a", label="mean score")
    for x, y, count in zip(
        calibration.edges[:-1][filled] + widths[filled] / 2,
        calibration.accuracy[filled],
        calibration.counts[filled],
        strict=True,
    ):
        axes.annotate(f"{count:,}", (x, y), (0, 3), textcoords="offset points", ha="center", fontsize=7.5)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("score")
    axes.legend(loc="upper left")
    return drawing.chart(name)


@styled
def points(name: str, title: str, values: Mapping[str, tuple[float, float]], x_label: str, y_label: str) -> Chart:
    """Named points (x, y)."""
    drawing = Drawing(title)
    for label, (x, y) in values.items():
        drawing.axes.plot(x, y, "o", markersize=7)
        drawing.axes.annotate(shortened(label), (x, y), (7, 4), textcoords="offset points", fontsize=8.5)
    drawing.axes.set_xlim(left=0)
    drawing.axes.margins(0.15)
    drawing.axes.set_xlabel(x_label)
    drawing.axes.set_ylabel(y_label)
    return drawing.chart(name)


@styled
def error_types(name: str, errors: Sequence[ErrorType], descriptions: Mapping[str, str]) -> Chart:
    """What AP50 would gain without each of TIDE's error types."""
    drawing = Drawing("Error types (TIDE)", (SIZE[0], 3.2))
    axes, rows = drawing.axes, np.arange(len(errors))
    axes.barh(rows, [error.gain for error in errors], 0.65)
    axes.set_yticks(rows, [f"{descriptions[error.name]} ({error.name})" for error in errors])
    axes.set_ylim(len(errors) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    for row, error in zip(rows, errors, strict=True):
        axes.annotate(
            f"{error.count:,}", (max(error.gain, 0.0), row), (4, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.margins(x=0.12)
    axes.set_xlim(left=0, right=None if any(error.gain > 0 for error in errors) else 1)
    axes.set_xlabel("AP50 gained if fixed; numbers count the errors")
    return drawing.chart(name)
