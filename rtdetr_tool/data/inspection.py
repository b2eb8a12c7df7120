"""Check annotations before training and in `validate_data`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtdetr_tool.data.dataset import DetectionDataset
from rtdetr_tool.data.findings import NOTE, Findings
from rtdetr_tool.data.records import ImageRecord
from rtdetr_tool.data.repairs import KINDS as REPAIRS
from rtdetr_tool.data.scoring import Scoring, check_scoring
from rtdetr_tool.errors import DataError
from rtdetr_tool.status import current_status

logger = logging.getLogger(__name__)

IMBALANCE = 100  # a class is rare if the most frequent class has at least this many times as many objects
SAME_BOX = 0.95  # minimum IoU of two boxes of a class that count as one object labeled twice
TINY = 1.0  # pixels of the network's input
_PAIRS = 1 << 18  # pairs of boxes compared at a time
_REFUSALS = {  # split -> message for an error before training
    "train": "The training data cannot be used for training. {}. Check dataset.train_data_sources.",
    "val": (
        "The validation data cannot be used to select the best checkpoint. {}. Fix dataset.val_data_sources or "
        "dataset.eval_class_ids."
    ),
}


@dataclass
class SplitCounts:
    """Size of a split; crowd regions are not objects."""

    images: int
    objects: int
    crowds: int
    empty_images: int
    by_class: dict[int, int]  # class index -> objects

    @classmethod
    def of(cls, dataset: DetectionDataset) -> SplitCounts:
        images = objects = crowds = empty = 0
        by_class = np.zeros(dataset.class_map.num_classes, dtype=np.int64)
        for record in dataset.records:
            single = record.labels[~record.iscrowd]
            images, objects, crowds = images + 1, objects + len(single), crowds + len(record) - len(single)
            empty += len(record) == 0
            by_class += np.bincount(single, minlength=len(by_class))
        classes = {entry.index: int(by_class[entry.index]) for entry in dataset.class_map.entries}
        return cls(images, objects, crowds, empty, classes)


# Checks without opening images


def check_contents(
    datasets: Mapping[str, DetectionDataset], findings: Findings, scoring: Scoring
) -> dict[str, SplitCounts]:
    """Fast checks at the start of a run: repairs, classes, objects, scoring, and images shared with the training data.

    `datasets` are by split and have the same classes.
    """
    counts = {split: SplitCounts.of(dataset) for split, dataset in datasets.items()}
    train_paths = {record.path for record in datasets["train"].records} if "train" in datasets else set()
    for split, dataset in datasets.items():
        findings.include(split, dataset.repairs, dataset.records)
        _check_classes(split, dataset, counts, findings)
        _check_queries(split, dataset, scoring.num_queries, findings)
        if split != "train":
            check_scoring(split, dataset, scoring, findings)
        for record in dataset.records if split != "train" and train_paths else ():
            if record.path in train_paths:
                findings.add("image_in_train", split, record.path, record=record)
    return counts


def _check_classes(
    split: str, dataset: DetectionDataset, counts: Mapping[str, SplitCounts], findings: Findings
) -> None:
    of_class, name_of = counts[split].by_class, dataset.class_map.name_of
    if counts[split].empty_images:
        findings.add("empty_images", split, count=counts[split].empty_images)
    if not counts[split].objects:
        if split != "test":  # `evaluate` reports undefined scores
            findings.add("no_objects", split)
        return
    trained = counts["train"].by_class if "train" in counts else None
    most = max(of_class, key=of_class.__getitem__)
    for index, count in of_class.items():
        if not count:
            findings.add("class_absent", split, name_of(index))
        elif count * IMBALANCE <= of_class[most]:
            findings.add("class_imbalance", split, f"{name_of(index)}: {count}, {name_of(most)}: {of_class[most]}")
        if count and trained is not None and not trained.get(index):
            findings.add("class_not_trained", split, name_of(index))


def _check_queries(split: str, dataset: DetectionDataset, num_queries: int | None, findings: Findings) -> None:
    if num_queries is None:
        return
    for record in dataset.records:
        objects = int((~record.iscrowd).sum())
        if objects > num_queries:
            findings.add("too_many_objects", split, f"{record.path}: {objects} of {num_queries}", record=record)


def check_before_training(datasets: Mapping[str, DetectionDataset], scoring: Scoring) -> None:
    """The fast part of `rtdetr validate_data`; findings go to the log and the status file.

    Raises:
        DataError: there is nothing to train on, or no score to select the best checkpoint by.
    """
    findings = Findings()
    check_contents(datasets, findings, scoring)
    if findings.errors:
        raise DataError("\n".join(_REFUSALS[finding.split].format(finding.line()) for finding in findings.errors))
    for finding in findings:
        current_status().write("RUNNING", finding.line(), verbosity="INFO" if finding.level == NOTE else "WARNING")
        if finding.kind not in REPAIRS:  # those were logged when the annotations were read
            logger.log(logging.INFO if finding.level == NOTE else logging.WARNING, finding.line())


def check_boxes(split: str, record: ImageRecord, input_size: tuple[int, int], findings: Findings) -> None:
    """Check for labels of one image that a detector with this input (height, width) cannot learn well."""
    tiny, duplicates = tiny_boxes(record, input_size), duplicate_boxes(record)
    if tiny:
        findings.add("box_tiny", split, record.path, tiny, record)
    if duplicates:
        findings.add("object_twice", split, record.path, duplicates, record)


def tiny_boxes(record: ImageRecord, input_size: tuple[int, int]) -> int:
    """Number of boxes smaller than `TINY` after their image is stretched to `input_size` (height, width)."""
    if not len(record) or not record.width:
        return 0
    scale = np.array([input_size[1] / record.width, input_size[0] / record.height])
    return int((((record.boxes[:, 2:] - record.boxes[:, :2]) * scale).min(axis=1) < TINY).sum())


def duplicate_boxes(record: ImageRecord) -> int:
    """Number of boxes nearly identical to another one of the same class; crowd regions do not count."""
    count = 0
    for label in set(record.labels.tolist()):
        boxes = record.boxes[(record.labels == label) & ~record.iscrowd]
        rows = max(1, _PAIRS // max(1, len(boxes)))
        for start in range(0, len(boxes), rows):  # in chunks, because thousands of boxes have millions of pairs
            same = _pairwise_iou(boxes[start : start + rows], boxes) >= SAME_BOX
            count += int(np.tril(same, start - 1).any(axis=1).sum())
    return count


def _pairwise_iou(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU [N, M] of xyxy boxes [N, 4] and [M, 4]."""
    low, high = np.maximum(one[:, None, :2], other[:, :2]), np.minimum(one[:, None, 2:], other[:, 2:])
    common = (high - low).clip(min=0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (one, other)]
    iou: NDArray[np.float64] = common / (areas[0][:, None] + areas[1] - common)
    return iou
