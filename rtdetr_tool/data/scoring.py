"""Check whether a split can be scored, and how many objects per image the metrics can count.

COCO metrics count at most `max_dets` detections per class and image. A detector returns at most `num_select` detections
per image, and has `num_queries` queries to detect objects with.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtdetr_tool.catalog import BOXES, KEYPOINTS, MASKS
from rtdetr_tool.data.dataset import DetectionDataset
from rtdetr_tool.data.findings import Findings
from rtdetr_tool.data.records import ImageRecord
from rtdetr_tool.messages import first_of
from rtdetr_tool.ops.masks import UNKNOWN

logger = logging.getLogger(__name__)

COCO_MAX_DETS = 100


@dataclass(frozen=True)
class Scoring:
    """How the detections of a model are scored.

    Args:
        class_ids: category ids that are scored; None means all.
        max_dets: counted detections per class and image.
        usual_max_dets: its default for the model; a value up to this one is not reported as larger than the detector's.
        num_select, num_queries: of the model; None without a model.
        kind: what decides the best checkpoint, one of `catalog.PREDICTS`.
    """

    class_ids: tuple[int, ...] | None = None
    max_dets: int = COCO_MAX_DETS
    usual_max_dets: int = COCO_MAX_DETS
    num_select: int | None = None
    num_queries: int | None = None
    kind: str = BOXES


@dataclass
class ScoredCounts:
    """Objects of a split without crowd regions: all, those of scored classes, and of these those with a mask or
    keypoints."""

    objects: int = 0
    scored: int = 0
    with_shape: int = 0


def check_scoring(split: str, dataset: DetectionDataset, scoring: Scoring, findings: Findings) -> None:
    """Check that a split can be scored, and that the objects of each image can all be counted and detected.

    Without a score there is no best checkpoint, so for validation data this is an error; a test split then has
    undefined scores. A split without any objects is not reported here, unless it is `test`.
    """
    counts = _count_objects(split, dataset, scoring, findings)
    if split == "test" and not counts.scored:
        findings.add("test_without_objects", split)
    elif counts.objects and not counts.scored:
        findings.add("no_scored_objects", split, f"dataset.eval_class_ids is {sorted(scoring.class_ids or ())}")
    elif scoring.kind != BOXES and counts.scored and not counts.with_shape:
        findings.add(f"no_scored_{scoring.kind}", split)


def log_scoring(split: str, dataset: DetectionDataset, scoring: Scoring) -> None:
    """Log the same checks before a split is scored in evaluation, where undefined scores are not an error."""
    findings = Findings()
    counts = _count_objects(split, dataset, scoring, findings)
    if not counts.scored:
        findings.add("test_without_objects", split)
    elif scoring.kind != BOXES and not counts.with_shape:
        findings.add(f"no_scored_{scoring.kind}", split)
    for finding in findings:
        logger.warning("%s", finding.line())


def _count_objects(split: str, dataset: DetectionDataset, scoring: Scoring, findings: Findings) -> ScoredCounts:
    classes, counts = dataset.class_map, ScoredCounts()
    scored = np.zeros(classes.num_classes, dtype=bool)
    for entry in classes.entries:
        scored[entry.index] = scoring.class_ids is None or entry.category_id in scoring.class_ids
    unknown = sorted(set(scoring.class_ids or ()) - set(classes.categories))
    if unknown:
        known = first_of([f"{number}: {name}" for number, name in classes.categories.items()], 20)
        findings.add("unknown_eval_class", split, f"{unknown}; expected {known}")
    for record in dataset.records:
        labels = record.labels[~record.iscrowd]
        is_scored = scored[labels]
        counts.objects += len(labels)
        counts.scored += int(is_scored.sum())
        counts.with_shape += _with_shape(record, scored, scoring.kind)
        _check_counts(split, dataset, record, labels[is_scored], len(labels), scoring, findings)
    check_limits(split, scoring, int(scored.size), findings)
    return counts


def _check_counts(
    split: str,
    dataset: DetectionDataset,
    record: ImageRecord,
    scored: NDArray[np.int64],
    objects: int,
    scoring: Scoring,
    findings: Findings,
) -> None:
    """`scored` are the class indices of scored objects; `objects` is the number of all objects of the image."""
    if len(scored) > scoring.max_dets:
        counts = np.bincount(scored)
        most = int(counts.argmax())
        if counts[most] > scoring.max_dets:
            where = f"{record.path}: {counts[most]} of {dataset.class_map.name_of(most)}"
            findings.add("beyond_max_dets", split, f"{where}, evaluate.max_dets is {scoring.max_dets}", record=record)
    if scoring.num_select is not None and objects > scoring.num_select:
        where = f"{record.path}: {objects}, model.num_select is {scoring.num_select}"
        findings.add("beyond_num_select", split, where, record=record)


def _with_shape(record: ImageRecord, scored: NDArray[np.bool_], kind: str) -> int:
    """The number of scored objects that have what `kind` requires in addition to a box."""
    known = np.zeros(len(record), dtype=bool)
    if kind == MASKS and record.masks:
        known = np.array([mask != UNKNOWN for mask in record.masks], dtype=bool)
    elif kind == KEYPOINTS and record.keypoints is not None:
        known = np.logical_or.reduce(record.keypoints[..., 2] > 0, axis=1)
    return int((known & ~record.iscrowd & scored[record.labels]).sum())


def check_limits(split: str, scoring: Scoring, classes: int, findings: Findings) -> None:
    """Check that an increased `max_dets` is not more than the detector can return."""
    limits: dict[str, int] = {}
    if scoring.num_select is not None:
        limits["model.num_select"] = scoring.num_select
    if scoring.num_queries is not None:
        limits["the number of queries x classes"] = scoring.num_queries * classes
    name, limit = min(limits.items(), key=lambda item: item[1], default=("", scoring.max_dets))
    if max(scoring.usual_max_dets, limit) < scoring.max_dets:
        findings.add("max_dets_not_reached", split, f"{name} is {limit}, evaluate.max_dets is {scoring.max_dets}")
