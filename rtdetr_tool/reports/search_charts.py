"""Charts of a search: the scores of its trials in order, and parallel coordinates of their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from rtdetr_tool.reports.drawing import GRAY, Drawing, shortened, styled
from rtdetr_tool.reports.page import Chart

_MARKS = {"finished": ("o", "#1f6feb"), "pruned": ("x", "#8b95a3")}


@styled
def history(name: str, trials: Sequence[tuple[int, str, float]], score_name: str) -> Chart:
    """Scores by trial, as (number, state, score), and the best finished one so far."""
    drawing = Drawing("Scores of the trials")
    axes = drawing.axes
    for state, (mark, color) in _MARKS.items():
        rows = [(number, score) for number, kind, score in trials if kind == state]
        if rows:
            axes.plot(*zip(*rows, strict=True), mark, color=color, label=state)
    finished = [(number, score) for number, kind, score in trials if kind == "finished"]
    if finished:
        best = np.maximum.accumulate([score for _, score in finished])
        axes.step([number for number, _ in finished], best, where="post", color="#d1570a", label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel(score_name)
    axes.legend(loc="best")
    return drawing.chart(name)


@styled
def pareto(
    name: str, points: Mapping[str, tuple[float, float]], front: Sequence[str], x_label: str, y_label: str
) -> Chart:
    """Points (latency, score) by the number of their trial; those of the front are connected and labeled."""
    drawing = Drawing("Pareto front")
    axes = drawing.axes
    others = [point for number, point in points.items() if number not in front]
    if others:
        axes.plot(*zip(*others, strict=True), "o", color=GRAY, markersize=4, label="others")
    axes.step(*zip(*(points[number] for number in front), strict=True), "o-", where="post", label="front")
    for number in front:
        axes.annotate(number, points[number], (4, 5), textcoords="offset points", fontsize=8.5)
    axes.set_xlim(left=0)
    axes.margins(0.12)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.legend(loc="best")
    return drawing.chart(name)


@styled
def parallel(
    name: str, columns: Sequence[tuple[str, bool]], rows: Sequence[Sequence[Any]], scores: Sequence[float]
) -> Chart:
    """One line per trial through its values, colored by score.

    Args:
        columns: name of each parameter, and whether its axis is logarithmic.
        rows: the values of each trial in the order of the columns; texts become positions in alphabetical order.
    """
    width = max(7.0, 1.25 * (len(columns) + 1))
    drawing = Drawing("Values and scores", (min(width, 24.0), 4.6))
    axes = drawing.axes
    positions = [_positions([row[index] for row in rows], log) for index, (_, log) in enumerate(columns)]
    positions.append(_positions(list(scores), False))
    scale = Normalize(min(scores), max(scores) if max(scores) > min(scores) else min(scores) + 1e-9)
    colors = ScalarMappable(scale, "viridis")
    for index in np.argsort(scores):
        line = [column[0][index] for column in positions]
        axes.plot(range(len(line)), line, color=colors.to_rgba(scores[index]), alpha=0.75)
    for number, (_, low, high) in enumerate(positions):
        axes.vlines(number, 0, 1, color="#8b95a3", linewidth=0.8)  # ends before the labels
        for y, text in ((-0.04, low), (1.04, high)):
            axes.text(number, y, shortened(text, 16), ha="center", va="bottom" if y > 0 else "top", fontsize=8)
    labels = [*(column.rpartition(".")[2] for column, _ in columns), "score"]
    axes.set_xticks(range(len(labels)), [shortened(label, 18) for label in labels], rotation=20, ha="right")
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.set_ylim(-0.14, 1.14)
    drawing.figure.colorbar(colors, ax=axes, label="score")
    return drawing.chart(name)


def _positions(values: Sequence[Any], log: bool) -> tuple[list[float], str, str]:
    """Positions 0..1 of values on an axis, and the texts at its ends."""
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        texts = sorted({str(value) for value in values})
        step = max(1, len(texts) - 1)
        return [texts.index(str(value)) / step for value in values], texts[0], texts[-1] if len(texts) > 1 else ""
    numbers = np.log(values) if log else np.asarray(values, dtype=float)
    low, high = float(numbers.min()), float(numbers.max())
    if high <= low:
        return [0.5] * len(values), f"{min(values):.4g}", ""
    return [float(v) for v in (numbers - low) / (high - low)], f"{min(values):.4g}", f"{max(values):.4g}"
