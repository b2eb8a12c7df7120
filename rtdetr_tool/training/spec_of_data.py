"""Complete a spec with what follows from the classes of the training data: numbers of class logits and keypoints."""

from __future__ import annotations

from dataclasses import replace

from rtdetr_tool.catalog import KEYPOINTS
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.keypoints import check_counts
from rtdetr_tool.spec import ExperimentSpec, ModelSpec


def with_classes_of(spec: ExperimentSpec, class_map: ClassMap) -> ExperimentSpec:
    """The spec with the numbers that it leaves to the data; DataError if it has other keypoints than the classes."""
    if spec.dataset.num_classes is None:
        rows = spec.model.family.class_rows(class_map.num_classes)
        spec = replace(spec, dataset=replace(spec.dataset, num_classes=rows))
    if spec.model.predicts == KEYPOINTS:
        spec = replace(spec, model=_with_keypoints_of(spec.model, class_map))
    return spec


def _with_keypoints_of(model: ModelSpec, class_map: ClassMap) -> ModelSpec:
    """The section with the numbers of keypoints of the classes; DataError if it has other ones."""
    if model.family.has_keypoints_of_data(model):
        return model.family.with_keypoint_counts(model, class_map.keypoint_counts)
    check_counts(model.keypoints.counts, class_map, "the training data")
    return model
