"""Merge the user's spec with the metadata of a file: the user's values where set, otherwise the file's.

A value that contradicts the file is an error or a warning, according to `recorded_fields`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from rtdetr_tool.checkpoints.metadata import ADVICE, check_against, without_paths
from rtdetr_tool.checkpoints.recorded_fields import REFUSED, WARNED, names_in, other_values, value_at
from rtdetr_tool.checkpoints.sub_detectors import LAYERS, is_possible
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families import family_of
from rtdetr_tool.families.base import SIZE_FIELDS
from rtdetr_tool.spec import ExperimentSpec, LoadedSpec, spec_from_dict, spec_to_dict
from rtdetr_tool.spec.queries import recorded_fields
from rtdetr_tool.spec.recipe import with_recipe, without_values

logger = logging.getLogger(__name__)


def merge_spec(source: str, loaded: LoadedSpec, meta: Mapping[str, Any], graph: bool) -> ExperimentSpec:
    """The user's spec, completed by the metadata of the file.

    Args:
        meta: what the file records (`metadata.py`).
        graph: the file is a deployed graph, in which most settings are fixed.

    Raises:
        CheckpointError: the user's spec contradicts the file.
    """
    given = loaded.explicit
    check_against(loaded.spec, meta, source=source, explicit=given, sub_detectors=not graph)
    refuse(
        (
            f"{name} is {value!r} in the spec, but {stored!r} in the file, where it is fixed"
            for name, _, value, stored in other_values(given, meta, graph, REFUSED)
            if name.startswith("model.")  # `check_against` compares the others
        ),
        source,
    )
    for name, rule, value, stored in other_values(given, meta, graph, WARNED):
        if not graph and is_possible(name, value, meta) == "trained":
            continue
        logger.warning(
            "%s is %s in the spec, %s in %s: it decides %s, so scores may differ", name, value, stored, source,
            rule.decides,
        )  # fmt: skip
    if not graph:
        _warn_of_fewer_layers(given, meta, source)
    return complete_spec(loaded, meta)


def _warn_of_fewer_layers(given: Mapping[str, Any], meta: Mapping[str, Any], source: str) -> None:
    """Fewer decoder layers than weights were trained with, where no other rule warns of them."""
    field = family_of(value_at(meta, "spec.model.arch")).sub_fields.get(LAYERS)
    name = "" if field is None else f"model.{field.name}"
    value = value_at(given, name)
    if field is not None and name not in recorded_fields() and is_possible(name, value, meta) == "untrained":
        logger.warning(
            "%s runs with %d decoder layers only, for which it was not trained (train.supernet), so scores may differ",
            source, value - field.offset,
        )  # fmt: skip


def complete_spec(loaded: LoadedSpec, meta: Mapping[str, Any]) -> ExperimentSpec:
    """The user's values where given; elsewhere the file's architecture, classes and sizes.

    Paths come from the user only: a file must not decide what is read on this machine.
    """
    stored = meta.get("spec") or {}
    data = spec_to_dict(loaded.spec)
    given = loaded.explicit
    given_model = given.get("model") or {}
    for name, value in without_paths(stored.get("model") or {}).items():
        if name not in given_model:
            data["model"][name] = value
        elif isinstance(value, Mapping):  # a section of which the user may have set a part
            data["model"][name] = {**value, **given_model[name]}
    stored_dataset, given_dataset = stored.get("dataset") or {}, given.get("dataset") or {}
    for name in names_in("dataset"):
        if name in stored_dataset and given_dataset.get(name) is None:
            data["dataset"][name] = stored_dataset[name]
    stored_sizes, given_sizes = stored_dataset.get("augmentation") or {}, given_dataset.get("augmentation") or {}
    sizes = data["dataset"]["augmentation"]
    sides = family_of(data["model"]["arch"]).image_sides
    if sides:  # sizes that are not set follow from the file's
        sizes = {name: value for name, value in sizes.items() if name in given_sizes or name not in SIZE_FIELDS}
        data["dataset"]["augmentation"] = sizes
        if any(value_at(given, f"model.{side}") is not None for side in sides):  # or from the user's
            stored_sizes = {name: value for name, value in stored_sizes.items() if name not in SIZE_FIELDS}
    for name in names_in("dataset.augmentation"):
        if name in stored_sizes and name not in given_sizes:
            sizes[name] = stored_sizes[name]
    family = family_of(data["model"]["arch"])
    return spec_from_dict(with_recipe(without_values(data, family.recipe, given), family))


def refuse(problems: Iterable[str], source: str) -> None:
    """CheckpointError with all of the problems, if there are any."""
    lines = "\n".join(f"  - {problem}" for problem in problems)
    if lines:
        raise CheckpointError(f"The spec and {source} contradict each other:\n{lines}\n{ADVICE}")
