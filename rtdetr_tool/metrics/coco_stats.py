"""COCO's metrics of accumulated precision and recall.

Shape legend: T IoU thresholds .50:.05:.95, R recall points, K categories, A area ranges (all, small, medium, large), M
limits of detections per class and image (`result.detection_limits`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdetr_tool.metrics.result import Stats, detection_limits, stat_names

_AREAS = {"all": 0, "s": 1, "m": 2, "l": 3}
IOU_50, IOU_75 = 0, 5


def curves(evaluation: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision [T, R, K, A, M] and recall [T, K, A, M] of hotcoco's evaluation; -1 without ground truth."""
    return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])


def coco_stats(precision: NDArray[np.float64], recall: NDArray[np.float64], max_dets: int) -> Stats:
    values = {
        "AP": defined_mean(precision[:, :, :, 0, -1]),
        "AP50": defined_mean(precision[IOU_50, :, :, 0, -1]),
        "AP75": defined_mean(precision[IOU_75, :, :, 0, -1]),
        **{f"AP{size}": defined_mean(precision[:, :, :, _AREAS[size], -1]) for size in "sml"},
        **{f"ARmax{count}": defined_mean(recall[:, :, 0, m]) for m, count in enumerate(detection_limits(max_dets))},
        **{f"AR{size}": defined_mean(recall[:, :, _AREAS[size], -1]) for size in "sml"},
    }
    return {name: values[name] for name in stat_names(max_dets)}


def defined_mean(values: NDArray[np.float64]) -> float | None:
    """Mean of the defined values (COCO marks undefined ones with -1); None if there are none."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None
