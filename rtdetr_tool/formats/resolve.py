"""Resolve the spec and the classes for a file: the user's values where set, otherwise the file's.

`checkpoints.spec_merge` handles what weights and graphs have in common; this module adds the input size and the fixed
settings of a graph. Values that a file does not record are assumed and logged.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rtdetr_tool.checkpoints.recorded_fields import value_at
from rtdetr_tool.checkpoints.spec_merge import merge_spec, refuse
from rtdetr_tool.checkpoints.sub_detectors import trained_sizes
from rtdetr_tool.data.preprocess import input_size
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families import Family
from rtdetr_tool.families.base import QUERY_COUNT
from rtdetr_tool.formats.base import Recorded
from rtdetr_tool.formats.description import normalization
from rtdetr_tool.formats.graph_interface import GraphInterface
from rtdetr_tool.formats.requested_size import FILE_SIZE, RequestedSize
from rtdetr_tool.ops.classes import MSCOCO_IDS, ClassMap
from rtdetr_tool.spec import AugmentationSpec, DatasetSpec, ExperimentSpec, LoadedSpec, spec_to_dict
from rtdetr_tool.spec.queries import reads, recorded_fields

logger = logging.getLogger(__name__)

RATIO, SIZE = "dataset.augmentation.preserve_aspect_ratio", "dataset.augmentation.eval_spatial_size"
CLASS_IDS, REMAP = "dataset.class_ids", "dataset.remap_mscoco_category"


def resolve(
    file: Recorded, loaded: LoadedSpec, size: RequestedSize = FILE_SIZE
) -> tuple[ExperimentSpec, ClassMap | None]:
    """The resolved spec and classes of a file.

    Args:
        size: the input size that a command's section requests.

    Raises:
        CheckpointError: the spec or the requested size contradicts the file.
        UserError: the requested size is not a multiple of what the detector requires.
    """
    given, interface = loaded.explicit, file.interface
    spec = merge_spec(file.source, loaded, file.meta, graph=interface is not None)
    class_map = _class_map(file, given, spec.dataset.num_classes)
    augmentation = size.applied(spec.dataset.augmentation)
    if interface is None:
        size.check_multiple(spec.model.size_multiple)
        _warn_of_another_size(file, augmentation)
    _log_assumed(file, replace(spec, dataset=replace(spec.dataset, augmentation=augmentation)), given, class_map, size)
    if interface is None:
        return _with_dataset(spec, augmentation=augmentation), class_map
    spec = _fixed_channels(file, spec, given, interface)
    num_classes = _fixed_classes(file, spec.dataset, given, class_map, interface)
    _check_queries(file, spec.model.family, given, interface)
    augmentation = _fixed_size(augmentation, file.source, given, size, interface.size)
    return _with_dataset(spec, augmentation=augmentation, num_classes=num_classes), class_map


def _with_dataset(spec: ExperimentSpec, **values: Any) -> ExperimentSpec:
    return replace(spec, dataset=replace(spec.dataset, **values))


def _class_map(file: Recorded, given: Mapping[str, Any], num_classes: int | None) -> ClassMap | None:
    """The classes recorded in a file; CheckpointError if the user's spec numbers them differently."""
    if not (classes := file.meta.get("classes")):
        return None
    class_map = ClassMap.from_list(classes, num_classes)
    if class_map.ids_known:
        refuse(_numbering_conflicts(given, file.meta, class_map), file.source)
    return class_map


def _numbering_conflicts(given: Mapping[str, Any], meta: Mapping[str, Any], class_map: ClassMap) -> list[str]:
    """Contradictions between the user's spec and the file's list of classes."""
    rule, remap = value_at(given, CLASS_IDS), value_at(given, REMAP)
    numbering = [(entry.index, entry.category_id) for entry in class_map.entries]
    ranks = {category_id: rank for rank, category_id in enumerate(MSCOCO_IDS)}
    by_id = [index for index, _ in sorted(numbering, key=lambda pair: pair[1])]
    fits = {"raw": all(index == c for index, c in numbering), "contiguous": by_id == list(range(len(by_id)))}
    shown = ", ".join(f"{index} = id {category_id}" for index, category_id in numbering[:6])
    shown += ", ..." * (len(numbering) > 6)
    problems = []
    if not fits.get(rule, True):
        problems.append(f"{CLASS_IDS} is {rule!r} in the spec, but the class indices in the file are {shown}")
    if remap and value_at(meta, f"spec.{REMAP}") is None and any(ranks.get(c) != i for i, c in numbering):
        problems.append(f"{REMAP} is true in the spec, but the class indices in the file are {shown}")
    return problems


def _warn_of_another_size(file: Recorded, augmentation: AugmentationSpec) -> None:
    """Weights run at other sizes than they were trained for, with a warning."""
    recorded, used = value_at(file.meta, f"spec.{SIZE}"), _size_of(augmentation)
    if used in trained_sizes(file.meta):
        return
    if recorded and used != (trained := input_size(recorded, augmentation.preserve_aspect_ratio)):
        logger.warning(
            "Images are resized to %d x %d (height x width), but %s was trained for %d x %d; scores may differ",
            *used, file.source, *trained,
        )  # fmt: skip


def _fixed_channels(
    file: Recorded, spec: ExperimentSpec, given: Mapping[str, Any], interface: GraphInterface
) -> ExperimentSpec:
    """The spec with the number of image channels of a graph; CheckpointError if it has another one."""
    channels, known = interface.channels, spec.model.num_channels
    if known == channels:
        return spec
    if file.meta or value_at(given, "model.num_channels") is not None:
        origin = "records" if value_at(given, "model.num_channels") is None else "was opened with"
        raise CheckpointError(
            f"{file.source} supports images with {channels} channels, but {origin} model.num_channels {known}. "
            f"{'Export it again' if origin == 'records' else 'Remove it'}."
        )
    return replace(spec, model=replace(spec.model, num_channels=channels))


def _fixed_classes(
    file: Recorded,
    dataset: DatasetSpec,
    given: Mapping[str, Any],
    class_map: ClassMap | None,
    interface: GraphInterface,
) -> int | None:
    """The dataset section with the number of classes that a graph predicts."""
    if not file.meta:
        logger.warning("%s has no class names; using those of the spec or dataset", file.source)
    classes = interface.classes
    if classes is None or classes == dataset.num_classes:
        return dataset.num_classes
    if value_at(given, "dataset.num_classes") is not None or class_map is not None:
        raise CheckpointError(
            f"{file.source} predicts {classes} classes, but dataset.num_classes is {dataset.num_classes}. Remove "
            "dataset.num_classes, or use the file that belongs to this dataset."
        )
    return classes


def _check_queries(file: Recorded, family: Family, given: Mapping[str, Any], interface: GraphInterface) -> None:
    """CheckpointError for another number of queries than a graph has that records none."""
    for name, rule in recorded_fields().items():
        queries = value_at(given, name) if rule == QUERY_COUNT and reads(family.name, name) else None
        if not file.meta and None not in (queries, interface.queries) and queries != interface.queries:
            raise CheckpointError(
                f"{file.source} has {interface.queries} queries built in, but {name} is {queries}. Remove it."
            )


def _fixed_size(
    augmentation: AugmentationSpec,
    path: str,
    given: Mapping[str, Any],
    requested: RequestedSize,
    size: tuple[int, int],
) -> AugmentationSpec:
    """The sizes with the only (height, width) that a graph supports."""
    takes = f"{path} only supports inputs of {size[0]} x {size[1]} (height x width)"
    if augmentation.preserve_aspect_ratio and size[0] != size[1]:
        raise CheckpointError(
            f"{takes}, but with {RATIO} images are padded to a square. Remove it, or export a square input."
        )
    expected = _size_of(augmentation)
    if expected == size:
        return augmentation
    name = requested.name or (SIZE if value_at(given, SIZE) is not None else "")
    if name:
        raise CheckpointError(
            f"{takes}, but {name} requests {expected[0]} x {expected[1]}. Remove it, or export the checkpoint at that "
            "size."
        )
    return replace(augmentation, eval_spatial_size=list(size))


def _log_assumed(
    file: Recorded, spec: ExperimentSpec, given: Mapping[str, Any], class_map: ClassMap | None, size: RequestedSize
) -> None:
    """Log the values that are used for fields that the file does not record."""
    names = [RATIO, *([] if file.interface else [SIZE]), *([] if class_map else [CLASS_IDS, REMAP])]
    requested = {SIZE} if size else set()
    lines = []
    for name in names:
        if value_at(file.meta, f"spec.{name}") is None:
            origin = "given" if name in requested or value_at(given, name) is not None else "default"
            lines.append(f"{name} = {_shown(value_at(spec_to_dict(spec), name))} ({origin})")
    if file.interface and not file.meta:
        lines.append(f"pixels: {normalization(file.interface.layout.normalised, file.interface.channels)}")
    if lines:
        logger.warning("%s does not record its preprocessing; assuming %s", file.source, "; ".join(lines))


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _size_of(augmentation: AugmentationSpec) -> tuple[int, int]:
    return input_size(augmentation.eval_spatial_size, augmentation.preserve_aspect_ratio)
