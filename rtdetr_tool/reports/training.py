"""Sections about a training run: curves of losses, scores and learning rates."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rtdetr_tool.reports import charts
from rtdetr_tool.reports.charts import Series
from rtdetr_tool.reports.history import Curve
from rtdetr_tool.reports.page import Block, Section

_DETAILS = ("F1", "precision", "recall", "threshold")
_Curves = Mapping[str, Curve]


def training_sections(history: Mapping[str, Curve]) -> list[Section]:
    """The curves of a run; `history` is by metric name, as the CSV files of a run have it."""
    train, val = _phase(history, "train"), _phase(history, "val")
    losses: list[Block] = [
        *_chart("train_loss", "Training loss", _pick(train, lambda name: name in ("loss_step", "loss"))),
        *_chart("val_loss", "Validation loss", _pick(val, lambda name: name == "loss")),
        *_chart("train_loss_terms", "Training loss by term", _pick(train, _is_term)),
        *_chart("val_loss_terms", "Validation loss by term", _pick(val, _is_term)),
    ]
    scores: list[Block] = [
        *_chart("val_scores", "Validation scores", _pick(val, _is_score), limits=True),
        *_chart("val_threshold", "At the best threshold", _pick(val, lambda name: name in _DETAILS), limits=True),
        *_chart(
            "val_ap_by_class", "Validation AP by class", _pick(val, lambda name: name.startswith("AP/")), limits=True
        ),
    ]
    rates = _pick(history, lambda name: name == "train/lr" or name.startswith(("lr-", "lr_", "lr/")))
    return [
        Section("Validation scores", scores),
        Section("Losses", losses),
        Section("Learning rate", _chart("learning_rate", "Learning rate", rates)),
    ]


def _phase(history: _Curves, phase: str) -> dict[str, Curve]:
    """The metrics of a phase, without its prefix."""
    prefix = f"{phase}/"
    return {name.removeprefix(prefix): curve for name, curve in history.items() if name.startswith(prefix)}


def _is_term(name: str) -> bool:
    return name.startswith("loss_") and name != "loss_step"


def _is_score(name: str) -> bool:
    return "mAP" in name or name.endswith("mAR")


def _pick(curves: _Curves, accepts: Callable[[str], bool]) -> dict[str, Curve]:
    return {name: curve for name, curve in curves.items() if accepts(name)}


def _chart(name: str, title: str, curves: _Curves, limits: bool = False) -> list[Block]:
    if not curves:
        return []
    series = [Series(label, curve.steps, curve.values, marked=True) for label, curve in curves.items()]
    y_limits = (0.0, None) if limits else (None, None)
    return [charts.lines(name, title, series, "step", y_limits=y_limits, whole_x=True)]
