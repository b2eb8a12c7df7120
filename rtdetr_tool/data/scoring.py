"""What a split needs to be scored, and how many objects of one image a score can count.

COCO's score takes at most `max_dets` detections of each class and image. A detector returns at most `num_select`
detections of an image, and has `num_queries` places to find objects in.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from rtdetr_tool.data.dataset import DetectionDataset
from rtdetr_tool.data.findings import Findings
from rtdetr_tool.data.records import ImageRecord
from rtdetr_tool.ops.masks import UNKNOWN

logger = logging.getLogger(__name__)

COCO_MAX_DETS = 100


@dataclass(frozen=True)
class Scoring:
    """How the detections of a model are scored.

    Args:
        class_ids: category ids that are scored, all when None.
        max_dets: detections of each class and image that count.
        num_select, num_queries: of the model; None when there is no model to ask.
        masks: whether the best checkpoint is chosen by masks.
    """

    class_ids: tuple[int, ...] | None = None
    max_dets: int = COCO_MAX_DETS
    num_select: int | None = None
    num_queries: int | None = None
    masks: bool = False


@dataclass
class ScoredCounts:
    """Objects of a split without crowd regions: all, those of the classes that are scored, and of these with a mask."""

    objects: int = 0
    scored: int = 0
    with_mask: int = 0


def check_scoring(split: str, dataset: DetectionDataset, scoring: Scoring, findings: Findings) -> None:
    """What keeps a split from being scored, and images whose objects cannot all be counted or found.

    Without a score there is no best checkpoint, so for validation data that is an error; a test split is only not
    scored. A split without any object at all is not reported here, unless it is `test`.
    """
    counts = _counted(split, dataset, scoring, findings)
    if split == "test" and not counts.scored:
        findings.add("test_without_objects", split)
    elif counts.objects and not counts.scored:
        findings.add("no_scored_objects", split, f"dataset.eval_class_ids is {sorted(scoring.class_ids)}")
    elif scoring.masks and counts.scored and not counts.with_mask:
        findings.add("no_scored_masks", split)


def log_scoring(split: str, dataset: DetectionDataset, scoring: Scoring) -> None:
    """Log the same before a split is scored and nothing depends on it: without objects its scores are undefined."""
    findings = Findings()
    counts = _counted(split, dataset, scoring, findings)
    if not counts.scored:
        findings.add("test_without_objects", split)
    elif scoring.masks and not counts.with_mask:
        findings.add("no_scored_masks", split)
    for found in findings:
        logger.warning("%s", found.line())


def _counted(split: str, dataset: DetectionDataset, scoring: Scoring, findings: Findings) -> ScoredCounts:
    classes, counts = dataset.class_map, ScoredCounts()
    wanted = np.zeros(classes.num_classes, dtype=bool)
    for entry in classes.entries:
        wanted[entry.index] = scoring.class_ids is None or entry.category_id in scoring.class_ids
    unknown = sorted(set(scoring.class_ids or ()) - set(classes.categories))
    if unknown:
        known = ", ".join(f"{number}: {name}" for number, name in classes.categories.items())
        findings.add("unknown_eval_class", split, f"{unknown}; the data has {known}")
    for record in dataset.records:
        labels = record.labels[~record.iscrowd]
        chosen = wanted[labels]
        counts.objects += len(labels)
        counts.scored += int(chosen.sum())
        counts.with_mask += _with_mask(record, wanted) if scoring.masks else 0
        _check_counts(split, dataset, record, labels[chosen], len(labels), scoring, findings)
    _check_limits(split, scoring, int(wanted.size), findings)
    return counts


def _check_counts(
    split: str, dataset: DetectionDataset, record: ImageRecord, scored: np.ndarray, objects: int, scoring: Scoring,
    findings: Findings,
) -> None:  # fmt: skip
    """`scored` are the class indices of the objects that are scored, `objects` is how many the image has."""
    if len(scored) > scoring.max_dets:
        counts = np.bincount(scored)
        most = int(counts.argmax())
        if counts[most] > scoring.max_dets:
            where = f"{record.path}: {counts[most]} of {dataset.class_map.name_of(most)}"
            findings.add("beyond_max_dets", split, f"{where}, evaluate.max_dets is {scoring.max_dets}", record=record)
    if scoring.num_select is not None and objects > scoring.num_select:
        where = f"{record.path}: {objects}, model.num_select is {scoring.num_select}"
        findings.add("beyond_num_select", split, where, record=record)


def _with_mask(record: ImageRecord, wanted: np.ndarray) -> int:
    masks = record.masks or [UNKNOWN] * len(record)
    known = np.array([mask != UNKNOWN for mask in masks], dtype=bool)
    return int((known & ~record.iscrowd & wanted[record.labels]).sum())


def _check_limits(split: str, scoring: Scoring, classes: int, findings: Findings) -> None:
    """Whether a raised `max_dets` is more than the detector can return."""
    limits = {}
    if scoring.num_select is not None:
        limits["model.num_select"] = scoring.num_select
    if scoring.num_queries is not None:
        limits["the number of queries x classes"] = scoring.num_queries * classes
    least = min(limits, key=limits.get, default=None)
    if least is not None and max(COCO_MAX_DETS, limits[least]) < scoring.max_dets:
        findings.add("max_dets_not_reached", split, f"{least} is {limits[least]}, evaluate.max_dets {scoring.max_dets}")
