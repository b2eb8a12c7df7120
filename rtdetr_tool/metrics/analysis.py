"""Analyze an evaluation: curves, confusion, calibration, error types, and the images with the most errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdetr_tool.class_names import unique_names
from rtdetr_tool.metrics.coco import CocoEvaluator
from rtdetr_tool.metrics.operating_point import THRESHOLDS, threshold_curves
from rtdetr_tool.metrics.result import CocoResult

ERROR_TYPES = {  # TIDE (arXiv:2008.08115); order and wording of the report
    "Cls": "wrong class, correct position",
    "Loc": "correct class, inaccurate box",
    "Both": "wrong class and inaccurate box",
    "Dupe": "second detection of an object",
    "Bkg": "detection without an object",
    "Miss": "object without a detection",
}
_IOUS = {"IoU 0.50": 0, "IoU 0.75": 5}
_BINS = 10


@dataclass(frozen=True)
class Confusion:
    """Detections with at least this score, matched at IoU 0.5 regardless of their class.

    `matrix` [K + 1, K + 1] counts true class (row) against predicted class (column). The last row counts detections
    without an object, the last column objects without a detection.
    """

    names: list[str]
    matrix: NDArray[np.int64]
    threshold: float


@dataclass(frozen=True)
class Calibration:
    """How well scores predict the share of correct detections (IoU 0.5), by bins of the score.

    `ece` is the expected calibration error (arXiv:1706.04599), `mce` the largest of a bin; None without detections.
    """

    ece: float | None
    mce: float | None
    edges: NDArray[np.float64]  # [B + 1]
    confidence: NDArray[np.float64]  # [B] mean score
    accuracy: NDArray[np.float64]  # [B] share of correct detections
    counts: NDArray[np.int64]  # [B]


@dataclass(frozen=True)
class ErrorType:
    """One of TIDE's error types: AP50 that would be gained without it, and how many there are."""

    name: str
    gain: float
    count: int


@dataclass(frozen=True)
class ImageScore:
    """Detections of one image at the best threshold: correct, wrong, and objects that are missed."""

    image_id: int
    correct: int
    wrong: int
    missed: int

    @property
    def f1(self) -> float:
        """1 for an image without objects and detections."""
        total = 2 * self.correct + self.wrong + self.missed
        return 2 * self.correct / total if total else 1.0


@dataclass(frozen=True)
class Analysis:
    """An evaluation in detail. Curves do not include classes without objects."""

    result: CocoResult
    recall: NDArray[np.float64]  # [R] recall levels of the precision curves
    precision: Mapping[str, NDArray[np.float64]]  # class name -> [R] precision at IoU 0.5
    mean_precision: Mapping[str, NDArray[np.float64]]  # IoU -> [R], mean over the classes
    thresholds: NDArray[np.float64]  # [T] scores of the threshold curves
    at_threshold: Mapping[str, NDArray[np.float64]]  # class name -> [3, T] F1, precision, recall
    confusion: Confusion
    calibration: Calibration
    errors: list[ErrorType]
    images: list[ImageScore]

    @property
    def mean_at_threshold(self) -> NDArray[np.float64] | None:
        """F1, precision and recall [3, T], mean over the classes; None without objects."""
        return np.mean(list(self.at_threshold.values()), axis=0) if self.at_threshold else None


def analyze(evaluator: CocoEvaluator, result: CocoResult | None = None) -> Analysis:
    """Analyze the detections that an evaluator has collected; `result` is its result if that is known."""
    result = result or evaluator.compute()
    evaluation = evaluator.evaluation()
    threshold = 0.5 if result.best.threshold is None else result.best.threshold
    curves = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]  # [T, R, K] of all sizes
    names = unique_names({row.category_id: row.name for row in result.per_class})
    scored = [(k, names[row.category_id]) for k, row in enumerate(result.per_class) if row.objects]
    detections = evaluator.class_detections()
    return Analysis(
        result=result,
        recall=np.linspace(0, 1, curves.shape[1]),
        precision={name: curves[0, :, k] for k, name in scored},
        mean_precision=_mean_precision(curves[:, :, [k for k, _ in scored]]),
        thresholds=THRESHOLDS,
        at_threshold={
            names[row.category_id]: threshold_curves(detections[row.category_id])
            for row in result.per_class
            if row.objects
        },
        confusion=_confusion(evaluator, names, threshold),
        calibration=_calibration(evaluation),
        errors=_errors(evaluation),
        images=image_scores(evaluator, threshold),
    )


def image_scores(evaluator: CocoEvaluator, threshold: float) -> list[ImageScore]:
    """Every image that has detections or was seen by `update`, the worst first."""
    scores = []
    for match in evaluator.matches():
        kept = match.counted & (match.scores >= threshold) & np.isin(match.categories, evaluator.category_ids)
        correct = int((match.correct & kept).sum())
        scores.append(ImageScore(match.image_id, correct, int(kept.sum()) - correct, match.objects - correct))
    return sorted(scores, key=lambda image: (image.f1, -image.wrong - image.missed, image.image_id))


def _mean_precision(curves: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    if not curves.shape[2]:
        return {}
    means = {name: curves[level].mean(axis=1) for name, level in _IOUS.items()}
    return {**means, "IoU 0.50:0.95": curves.mean(axis=(0, 2))}


def _confusion(evaluator: CocoEvaluator, names: Mapping[int, str], threshold: float) -> Confusion:
    confusion = evaluator.confusion_at(threshold).confusion_matrix(iou_thr=0.5, max_det=evaluator.max_dets)
    rows = list(confusion["cat_ids"])
    index = [*(rows.index(evaluator.number_of(category_id)) for category_id in names), len(rows)]
    matrix = np.asarray(confusion["matrix"]).astype(np.int64)
    return Confusion(list(names.values()), matrix[np.ix_(index, index)], threshold)


def _calibration(evaluation: Any) -> Calibration:
    calibration = evaluation.calibration(n_bins=_BINS, iou_threshold=0.5)
    bins = calibration["bins"]
    some = calibration["num_detections"] > 0
    return Calibration(
        ece=calibration["ece"] if some else None,
        mce=calibration["mce"] if some else None,
        edges=np.array([*(b["bin_lower"] for b in bins), 1.0]),
        confidence=np.array([b["avg_confidence"] for b in bins]),
        accuracy=np.array([b["avg_accuracy"] for b in bins]),
        counts=np.array([b["count"] for b in bins]),
    )


def _errors(evaluation: Any) -> list[ErrorType]:
    errors = evaluation.tide_errors(pos_thr=0.5, bg_thr=0.1)
    return [ErrorType(name, float(errors["delta_ap"][name]), int(errors["counts"][name])) for name in ERROR_TYPES]
