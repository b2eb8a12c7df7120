"""Build the evaluator that a spec describes."""

from __future__ import annotations

from typing import Any, Protocol

from rtdetr_tool.metrics.coco import CocoEvaluator
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.spec import ExperimentSpec


class LabeledDataset(Protocol):
    """What an evaluator needs of a dataset."""

    @property
    def class_map(self) -> ClassMap: ...

    def coco_ground_truth(self) -> dict[str, Any]: ...


def build_evaluator(dataset: LabeledDataset, spec: ExperimentSpec) -> CocoEvaluator:
    """An evaluator for the ground truth of `dataset`, with the classes and detection limit of the spec."""
    return CocoEvaluator(
        dataset.coco_ground_truth(),
        dataset.class_map,
        spec.dataset.eval_class_ids,
        spec.evaluate.max_dets,
        spec.evaluate.keypoint_oks_sigmas,
    )
