"""COCO's keypoint metrics by object keypoint similarity (OKS), computed with hotcoco.

OKS is the mean of exp(-d^2 / (2 a k^2)) over the labeled keypoints of an object: d their distances, a the object's
area, k twice the sigma of the keypoint. Classes with different numbers of keypoints have different sigmas, so each such
group of classes is evaluated alone. Objects without labeled keypoints are ignored.

Shape legend: T OKS thresholds .50:.05:.95, R recall points, K categories, A area ranges (all, medium, large), M = 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import hotcoco
import numpy as np

from rtdetr_tool.metrics.coco_stats import IOU_50, IOU_75, curves, defined_mean
from rtdetr_tool.metrics.result import Stats
from rtdetr_tool.ops.keypoints import oks_sigmas

MAX_DETS = 20  # per image, as in COCO
_AREAS = {"m": 1, "l": 2}


def keypoint_counts(ground_truth: Mapping[str, Any]) -> dict[int, int]:
    """Number of keypoints by category id, of the categories whose objects have any."""
    counts: dict[int, int] = {}
    for annotation in ground_truth["annotations"]:
        count = len(annotation.get("keypoints") or ()) // 3
        if count:
            counts[annotation["category_id"]] = max(count, counts.get(annotation["category_id"], 0))
    return counts


def keypoint_stats(
    truth: Mapping[str, Any], results: Iterable[Mapping[str, Any]], sigmas: Sequence[float] | None = None
) -> Stats:
    """COCO's ten keypoint metrics over the categories of `truth` whose objects have keypoints.

    Args:
        truth: COCO dict with ids above 0.
        results: COCO results with `keypoints`, x, y, score for each.
        sigmas: those of a class are the first ones; None = `oks_sigmas`.
    """
    groups: dict[int, list[int]] = {}
    for category_id, count in sorted(keypoint_counts(truth).items()):
        groups.setdefault(count, []).append(category_id)
    detections = list(results)
    parts = [_curves(truth, detections, ids, oks_sigmas(count, sigmas)) for count, ids in groups.items()]
    precision = np.concatenate([part[0] for part in parts], axis=2)  # [T, R, K, A, M]
    recall = np.concatenate([part[1] for part in parts], axis=1)  # [T, K, A, M]
    return {
        "AP": defined_mean(precision[:, :, :, 0]),
        "AP50": defined_mean(precision[IOU_50, :, :, 0]),
        "AP75": defined_mean(precision[IOU_75, :, :, 0]),
        **{f"AP{size}": defined_mean(precision[:, :, :, index]) for size, index in _AREAS.items()},
        "AR": defined_mean(recall[:, :, 0]),
        "AR50": defined_mean(recall[IOU_50, :, 0]),
        "AR75": defined_mean(recall[IOU_75, :, 0]),
        **{f"AR{size}": defined_mean(recall[:, :, index]) for size, index in _AREAS.items()},
    }


def _curves(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], ids: list[int], sigmas: list[float]) -> Any:
    """Precision and recall of categories with the same number of keypoints."""
    count = 3 * len(sigmas)
    annotations = [_complete(a, count) for a in truth["annotations"] if a["category_id"] in ids]
    coco = hotcoco.COCO({**truth, "annotations": annotations})
    # Without `bbox`, the area of a detection is that of its keypoints, as in COCO's own result files.
    rows = [
        {**{key: row[key] for key in ("image_id", "category_id", "score")}, "keypoints": row["keypoints"][:count]}
        for row in results
        if row["category_id"] in ids
    ]
    evaluation = hotcoco.COCOeval(coco, coco.load_res(rows), "keypoints")
    evaluation.params.cat_ids = ids
    evaluation.params.img_ids = [image["id"] for image in truth["images"]]
    evaluation.params.max_dets = [MAX_DETS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about sigmas other than COCO's
        evaluation.params.kpt_oks_sigmas = sigmas
        evaluation.evaluate()
    evaluation.accumulate()
    return curves(evaluation)


def _complete(annotation: Mapping[str, Any], count: int) -> dict[str, Any]:
    """An annotation with `keypoints` and `num_keypoints`, also if it has none."""
    points = annotation.get("keypoints") or [0.0] * count
    return {**annotation, "keypoints": points, "num_keypoints": sum(visible > 0 for visible in points[2::3])}
