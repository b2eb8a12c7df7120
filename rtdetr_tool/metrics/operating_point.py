"""Precision, recall and F1 of the one confidence threshold that is best for all classes together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = np.linspace(0, 1, 101)
_LEAST_IOU = 0.5


@dataclass(frozen=True)
class Found:
    """The detections of one class in all images."""

    scores: NDArray[np.float64]  # [N], without detections that COCO ignores (on crowd regions)
    correct: NDArray[np.bool_]  # [N]
    objects: int  # to be found; crowd regions are none


@dataclass(frozen=True)
class OperatingPoint:
    """Means over the classes that have objects, at `threshold`: detections with at least that score count.

    Without any object all four are undefined.
    """

    threshold: float | None
    f1: float | None
    precision: float | None
    recall: float | None


NOTHING_TO_FIND = OperatingPoint(None, None, None, None)


def best_operating_point(classes: Mapping[int, Found]) -> OperatingPoint:
    """The lowest of the thresholds 0, 0.01, ..., 1 with the greatest mean F1; `NOTHING_TO_FIND` without any object."""
    rows = [_curves(found) for found in classes.values() if found.objects]
    if not rows:
        return NOTHING_TO_FIND
    f1, precision, recall = np.mean(rows, axis=0)
    best = int(f1.argmax())
    return OperatingPoint(float(THRESHOLDS[best]), float(f1[best]), float(precision[best]), float(recall[best]))


def match(
    boxes: NDArray[np.float64],
    scores: NDArray[np.float64],
    classes: NDArray,
    truth: NDArray[np.float64],
    truth_classes: NDArray,
    crowd: NDArray[np.bool_],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which detections of an image find an object, and which count at all, by COCO's rule at IoU 0.5.

    Best scores first, each takes the free object of its class that it overlaps most. One that overlaps only a crowd
    region does not count.

    Args:
        boxes, truth: [D, 4] and [G, 4], xywh pixels.
    """
    correct, counted = np.zeros(len(boxes), dtype=bool), np.ones(len(boxes), dtype=bool)
    overlap = _overlap(boxes, truth, crowd)
    overlap[classes[:, None] != truth_classes[None]] = 0
    free = ~crowd
    candidates = np.flatnonzero((overlap >= _LEAST_IOU).any(1))
    for index in candidates[np.argsort(-scores[candidates], kind="stable")]:
        row = np.where(free, overlap[index], 0)
        best = row.argmax()
        if row[best] >= _LEAST_IOU:
            correct[index], free[best] = True, False
        elif (overlap[index, crowd] >= _LEAST_IOU).any():
            counted[index] = False
    return correct, counted


def _overlap(boxes: NDArray[np.float64], truth: NDArray[np.float64], crowd: NDArray[np.bool_]) -> NDArray[np.float64]:
    """IoU [D, G]; for a crowd region the share of the detection that lies in it."""
    low = np.maximum(boxes[:, None, :2], truth[None, :, :2])
    high = np.minimum((boxes[:, :2] + boxes[:, 2:])[:, None], (truth[:, :2] + truth[:, 2:])[None])
    shared = (high - low).clip(min=0).prod(-1)
    area, truth_area = boxes[:, 2:].prod(-1)[:, None], truth[:, 2:].prod(-1)[None]
    union = np.where(crowd[None], area, area + truth_area - shared)
    return shared / np.maximum(union, 1e-12)


def _curves(found: Found) -> NDArray[np.float64]:
    """[3, thresholds]: F1, precision and recall of one class; 0 where nothing is found."""
    order = np.argsort(found.scores, kind="stable")
    below = np.searchsorted(found.scores[order], THRESHOLDS, side="left")  # detections that a threshold drops
    correct_below = np.concatenate([[0], np.cumsum(found.correct[order])])[below]
    correct = found.correct.sum() - correct_below
    kept = len(found.scores) - below
    precision = correct / np.maximum(kept, 1)
    recall = correct / found.objects
    f1 = 2 * correct / (kept + found.objects)
    return np.stack([f1, precision, recall])
