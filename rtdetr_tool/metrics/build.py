"""The evaluator that a spec asks for."""

from __future__ import annotations

from typing import Any

from rtdetr_tool.metrics.coco import CocoEvaluator
from rtdetr_tool.spec import ExperimentSpec


def build_evaluator(dataset: Any, spec: ExperimentSpec) -> CocoEvaluator:
    """Scores against the ground truth of a labelled dataset, for the classes and detections that the spec counts."""
    return CocoEvaluator(
        dataset.coco_ground_truth(), dataset.class_map, spec.dataset.eval_class_ids, spec.evaluate.max_dets
    )
