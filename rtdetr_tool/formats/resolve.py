"""Which spec holds for a file: the user's where the user says something, the file's elsewhere.

The user may not contradict what a file records (`checkpoints.recorded_fields`). What a file does not record is assumed,
and the log says what.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rtdetr_tool.checkpoints.metadata import ADVICE, KEY, check_against, checked_metadata, without_paths
from rtdetr_tool.checkpoints.recorded_fields import REFUSED, WARNED, names_in, other_values, value_at
from rtdetr_tool.data.preprocess import input_size
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families import family_of
from rtdetr_tool.families.base import SIZE_FIELDS
from rtdetr_tool.formats.description import NORMALISATION
from rtdetr_tool.formats.graph_interface import GraphInterface
from rtdetr_tool.formats.requested_size import OWN_SIZE, AskedSize
from rtdetr_tool.ops.classes import MSCOCO_IDS, ClassMap
from rtdetr_tool.spec import AugmentationSpec, ExperimentSpec, LoadedSpec, spec_from_dict, spec_to_dict
from rtdetr_tool.spec.recipe import with_recipe, without_values

logger = logging.getLogger(__name__)

RATIO, SIZE = "dataset.augmentation.preserve_aspect_ratio", "dataset.augmentation.eval_spatial_size"
CLASS_IDS, REMAP = "dataset.class_ids", "dataset.remap_mscoco_category"


def settle(
    source: str,
    loaded: LoadedSpec,
    meta: Mapping[str, Any],
    asked: AskedSize = OWN_SIZE,
    interface: GraphInterface | None = None,
) -> tuple[ExperimentSpec, ClassMap | None]:
    """The spec completed by what the file records, and its classes.

    Args:
        meta: what the file records (`checkpoints.metadata`); of a foreign file only what its shapes settle.
        interface: of a graph or engine, whose input has one size.

    Raises:
        CheckpointError: the user contradicts the file.
    """
    given, graph = loaded.explicit, interface is not None
    check_against(loaded.spec, meta, source=source, explicit=given)
    _refuse(
        (
            f"{name} is {value!r} in the spec, {stored!r} in the file, which has it built in"
            for name, _, value, stored in other_values(given, meta, graph, REFUSED)
            if name.startswith("model.")  # the others are compared above
        ),
        source,
    )
    spec = complete_spec(loaded, meta)
    classes = meta.get("classes")
    class_map = ClassMap.from_list(classes, spec.dataset.num_classes) if classes else None
    _refuse(_other_numbering(given, meta, class_map), source)
    for name, rule, value, stored in other_values(given, meta, graph, WARNED):
        logger.warning(
            "%s is %s in the spec, %s in %s: it decides %s, so scores may differ", name, value, stored, source,
            rule.decides,
        )  # fmt: skip
    augmentation = asked.applied(spec.dataset.augmentation)
    spec = replace(spec, dataset=replace(spec.dataset, augmentation=augmentation))
    recorded, used = value_at(meta, f"spec.{SIZE}"), _size_of(augmentation)
    if recorded and not graph and used != (trained := input_size(recorded, augmentation.preserve_aspect_ratio)):
        logger.warning(
            "Images are brought to %d x %d (height x width), but %s was trained for %d x %d: scores may differ",
            *used, source, *trained,
        )  # fmt: skip
    _say_assumed(source, spec, given, meta, class_map, asked, interface)
    return spec, class_map


def settle_file(
    path: str,
    loaded: LoadedSpec,
    description: Mapping[str, Any],
    interface: GraphInterface,
    asked: AskedSize = OWN_SIZE,
) -> tuple[ExperimentSpec, ClassMap | None]:
    """Spec and classes for a graph or engine, with the one input size and number of classes that it has.

    Raises:
        CheckpointError: where the spec says otherwise.
    """
    meta = description.get(KEY)
    meta = checked_metadata(meta, path) if isinstance(meta, Mapping) and "spec" in meta else {}
    _check_pixels(path, description, interface)
    spec, class_map = settle(path, loaded, meta, asked, interface)
    if not meta:
        logger.warning("%s does not say what its classes are: the spec and the data give them", path)
    classes = interface.classes
    if classes is not None and classes != spec.dataset.num_classes:
        if value_at(loaded.explicit, "dataset.num_classes") is not None or class_map is not None:
            raise CheckpointError(
                f"{path} predicts {classes} classes, but dataset.num_classes is {spec.dataset.num_classes}; leave "
                "dataset.num_classes out, or choose the file that belongs to this data"
            )
        spec = replace(spec, dataset=replace(spec.dataset, num_classes=classes))
    queries = value_at(loaded.explicit, "model.num_queries")
    if not meta and None not in (queries, interface.queries) and queries != interface.queries:
        raise CheckpointError(
            f"{path} has {interface.queries} queries built in, but model.num_queries is {queries}; leave it out"
        )
    augmentation = _fixed_size(spec.dataset.augmentation, path, loaded.explicit, asked, interface.size)
    return replace(spec, dataset=replace(spec.dataset, augmentation=augmentation)), class_map


def _fixed_size(
    augmentation: AugmentationSpec,
    path: str,
    given: Mapping[str, Any],
    asked: AskedSize,
    size: tuple[int, int],
) -> AugmentationSpec:
    """The sizes with the one that the file takes."""
    takes = f"{path} takes inputs of {size[0]} x {size[1]} (height x width) only"
    if augmentation.preserve_aspect_ratio and size[0] != size[1]:
        raise CheckpointError(
            f"{takes}, but with {RATIO} images are padded to a square. Leave it out, or export a square input."
        )
    wanted = _size_of(augmentation)
    if wanted == size:
        return augmentation
    name = asked.name or (SIZE if value_at(given, SIZE) is not None else "")
    if name:
        raise CheckpointError(
            f"{takes}; {name} asks for {wanted[0]} x {wanted[1]}. Leave it out, or export the checkpoint at that size."
        )
    return replace(augmentation, eval_spatial_size=list(size))


def _check_pixels(path: str, description: Mapping[str, Any], interface: GraphInterface) -> None:
    """The names of a graph's input and outputs tell which pixels it takes; what it says of them must be the same."""
    said, taken = description.get("normalisation"), NORMALISATION[interface.layout.normalised]
    if said in NORMALISATION.values() and said != taken:
        raise CheckpointError(
            f"{path} says that it takes {said}, but an input called {interface.layout.input} takes {taken}. Its input "
            "was renamed, or its description changed: export it again."
        )


def complete_spec(loaded: LoadedSpec, meta: Mapping[str, Any]) -> ExperimentSpec:
    """The user's spec where it says something; elsewhere the checkpoint's architecture, classes and sizes.

    Paths are the user's alone: whoever made the checkpoint has no say in what is read here.
    """
    stored = meta.get("spec") or {}
    data = spec_to_dict(loaded.spec)
    given = loaded.explicit
    given_model = given.get("model") or {}
    for name, value in without_paths(stored.get("model") or {}).items():
        if name not in given_model:
            data["model"][name] = value
        elif isinstance(value, Mapping):  # a section: what the user said of it, and the rest as it was
            data["model"][name] = {**value, **given_model[name]}
    stored_dataset, given_dataset = stored.get("dataset") or {}, given.get("dataset") or {}
    for name in names_in("dataset"):
        if name in stored_dataset and given_dataset.get(name) is None:
            data["dataset"][name] = stored_dataset[name]
    stored_sizes, given_sizes = stored_dataset.get("augmentation") or {}, given_dataset.get("augmentation") or {}
    sizes = data["dataset"]["augmentation"]
    sides = family_of(data["model"]["arch"]).image_sides
    if sides:  # sizes that nobody gave follow from the checkpoint's
        sizes = {name: value for name, value in sizes.items() if name in given_sizes or name not in SIZE_FIELDS}
        data["dataset"]["augmentation"] = sizes
        if any(value_at(given, f"model.{side}") is not None for side in sides):  # or from the user's
            stored_sizes = {name: value for name, value in stored_sizes.items() if name not in SIZE_FIELDS}
    for name in names_in("dataset.augmentation"):
        if name in stored_sizes and name not in given_sizes:
            sizes[name] = stored_sizes[name]
    family = family_of(data["model"]["arch"])
    return spec_from_dict(with_recipe(without_values(data, family.recipe, given), family))


def _refuse(problems: Any, source: str) -> None:
    """CheckpointError with all of the problems, if there are any."""
    lines = "\n".join(f"  - {problem}" for problem in problems)
    if lines:
        raise CheckpointError(f"The spec and {source} contradict each other:\n{lines}\n{ADVICE}")


def _other_numbering(given: Mapping[str, Any], meta: Mapping[str, Any], class_map: ClassMap | None) -> list[str]:
    """What the user says about the numbering of classes that is not so in the file's list of classes."""
    rule, remap = value_at(given, CLASS_IDS), value_at(given, REMAP)
    if class_map is None or not class_map.ids_known:
        return []
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


def _say_assumed(
    source: str,
    spec: ExperimentSpec,
    given: Mapping[str, Any],
    meta: Mapping[str, Any],
    class_map: ClassMap | None,
    asked: AskedSize,
    interface: GraphInterface | None,
) -> None:
    """Say what holds for a file in place of what it does not record."""
    names = [RATIO, *([] if interface else [SIZE]), *([] if class_map else [CLASS_IDS, REMAP])]
    told = {SIZE} if asked else set()
    lines = []
    for name in names:
        if value_at(meta, f"spec.{name}") is None:
            origin = "given" if name in told or value_at(given, name) is not None else "default"
            lines.append(f"{name} = {_shown(value_at(spec_to_dict(spec), name))} ({origin})")
    if interface and not meta:
        lines.append(f"pixels: {NORMALISATION[interface.layout.normalised]}")
    if lines:
        logger.warning("%s does not record how its images were prepared; assumed: %s", source, "; ".join(lines))


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _size_of(augmentation: AugmentationSpec) -> tuple[int, int]:
    return input_size(augmentation.eval_spatial_size, augmentation.preserve_aspect_ratio)
