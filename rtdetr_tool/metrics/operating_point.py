"""Precision, recall and F1 at the confidence threshold that is best over all classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = np.linspace(0, 1, 101)
_MIN_IOU = 0.5


@dataclass(frozen=True)
class ClassDetections:
    """The detections of one class in all images."""

    scores: NDArray[np.float64]  # [N], without detections that COCO ignores (those on crowd regions)
    correct: NDArray[np.bool_]  # [N]
    objects: int  # ground truth without crowd regions


@dataclass(frozen=True)
class OperatingPoint:
    """Means over the classes that have objects, counting detections with a score of at least `threshold`.

    All four are None if there are no objects.
    """

    threshold: float | None
    f1: float | None
    precision: float | None
    recall: float | None


UNDEFINED = OperatingPoint(None, None, None, None)


def best_operating_point(classes: Mapping[int, ClassDetections]) -> OperatingPoint:
    """The lowest of the thresholds 0, 0.01, ..., 1 with the highest mean F1; `UNDEFINED` without objects."""
    rows = [threshold_curves(detections) for detections in classes.values() if detections.objects]
    if not rows:
        return UNDEFINED
    f1, precision, recall = np.mean(rows, axis=0)
    best = int(f1.argmax())
    return OperatingPoint(float(THRESHOLDS[best]), float(f1[best]), float(precision[best]), float(recall[best]))


def match_detections(
    boxes: NDArray[np.float64],
    scores: NDArray[np.float64],
    classes: NDArray[Any],
    truth: NDArray[np.float64],
    truth_classes: NDArray[Any],
    crowd: NDArray[np.bool_],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which detections of an image are correct, and which count at all, by COCO's rules at IoU 0.5.

    In descending order of score, each detection takes the unmatched object of its class that it overlaps most. A
    detection that overlaps only a crowd region is not counted.

    Args:
        boxes, truth: [D, 4] and [G, 4] xywh pixels.

    Returns:
        Masks [D] of correct and of counted detections.
    """
    correct, counted = np.zeros(len(boxes), dtype=bool), np.ones(len(boxes), dtype=bool)
    overlap = _overlap(boxes, truth, crowd)
    overlap[classes[:, None] != truth_classes[None]] = 0
    unmatched = ~crowd
    candidates = np.flatnonzero((overlap >= _MIN_IOU).any(1))
    for index in candidates[np.argsort(-scores[candidates], kind="stable")]:
        row = np.where(unmatched, overlap[index], 0)
        best = row.argmax()
        if row[best] >= _MIN_IOU:
            correct[index], unmatched[best] = True, False
        elif (overlap[index, crowd] >= _MIN_IOU).any():
            counted[index] = False
    return correct, counted


def _overlap(boxes: NDArray[np.float64], truth: NDArray[np.float64], crowd: NDArray[np.bool_]) -> NDArray[np.float64]:
    """IoU [D, G]; for a crowd region, the share of the detection inside it."""
    low = np.maximum(boxes[:, None, :2], truth[None, :, :2])
    high = np.minimum((boxes[:, :2] + boxes[:, 2:])[:, None], (truth[:, :2] + truth[:, 2:])[None])
    shared = (high - low).clip(min=0).prod(-1)
    area, truth_area = boxes[:, 2:].prod(-1)[:, None], truth[:, 2:].prod(-1)[None]
    union = np.where(crowd[None], area, area + truth_area - shared)
    overlap: NDArray[np.float64] = shared / np.maximum(union, 1e-12)
    return overlap


def threshold_curves(detections: ClassDetections) -> NDArray[np.float64]:
    """F1, precision and recall of one class at each of `THRESHOLDS`, [3, T]; 0 without detections."""
    order = np.argsort(detections.scores, kind="stable")
    below = np.searchsorted(detections.scores[order], THRESHOLDS, side="left")  # detections below each threshold
    correct_below = np.concatenate([[0], np.cumsum(detections.correct[order])])[below]
    correct = detections.correct.sum() - correct_below
    kept = len(detections.scores) - below
    precision = correct / np.maximum(kept, 1)
    recall = correct / detections.objects
    f1 = 2 * correct / (kept + detections.objects)
    return np.stack([f1, precision, recall])
