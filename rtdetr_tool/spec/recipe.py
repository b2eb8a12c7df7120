"""The training recipe of a model family: its defaults, and the changes that a spec makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rtdetr_tool.families import Family, all_families, family_of
from rtdetr_tool.spec.convert import spec_to_dict
from rtdetr_tool.spec.experiment import ExperimentSpec
from rtdetr_tool.spec.fields import default_of
from rtdetr_tool.spec.schema import walk_fields
from rtdetr_tool.spec.tables import FIELD_ALIASES
from rtdetr_tool.spec.train import TrainSpec


def with_recipe(data: Mapping[str, Any], family: Family | None = None) -> dict[str, Any]:
    """Spec data with the family's defaults for the fields that are not set.

    Args:
        family: None = the family named by `model.arch`.
    """
    if family is None:
        model = data.get("model")
        family = family_of(model.get("arch") if isinstance(model, Mapping) else None)
    aliases = {field: name for name, field in FIELD_ALIASES.items()}
    result = dict(data)
    for field, value in _recipe_for(data, family).items():
        if not _is_given(data, field) and not _is_given(data, aliases.get(field, field)):
            _set(result, field, value)
    return result


def epochs_of(data: Mapping[str, Any]) -> Any:
    """The unchecked `train.num_epochs` of spec data: the one that is set, or else the recipe's."""
    train = with_recipe(data).get("train")
    given = train.get("num_epochs") if isinstance(train, Mapping) else None
    return TrainSpec().num_epochs if given is None else given


def without_values(data: Mapping[str, Any], fields: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Spec data without these fields, except those that are in `given`."""
    result = dict(data)
    for field in fields:
        if _is_given(result, field) and not _is_given(given, field):
            *sections, leaf = field.split(".")
            inner = result
            for section in sections:
                inner[section] = inner = dict(inner[section])
            del inner[leaf]
    return result


def recipe_line(spec: ExperimentSpec) -> str:
    """A log line: the recipe of a run, and the changes that its spec makes."""
    family, values = spec.model.family, spec_to_dict(spec)
    schema = {name: default_of(entry) for name, entry, _ in walk_fields()}
    recipe, sizes = _recipe_for(values, family), _size_fields(spec)
    changes = []
    for field in dict.fromkeys(name for each in all_families() for name in each.recipe):
        if field in sizes and field not in recipe:
            continue
        default, value = recipe.get(field, schema[field]), _value(values, field)
        if value != default:
            changes.append(f"{field} {_shown(value)} instead of {_shown(default)}")
    text = f"Training recipe: {family.title}, {family.recipe_source}"
    return f"{text}, with {', '.join(changes)}" if changes else text


def _recipe_for(data: Mapping[str, Any], family: Family) -> Mapping[str, Any]:
    """The recipe of the model that spec data describe."""
    model = data.get("model")
    section = model.get(family.section) if isinstance(model, Mapping) and family.section else None
    return family.recipe_of(section if isinstance(section, Mapping) else {})


def _size_fields(spec: ExperimentSpec) -> set[str]:
    """Fields whose defaults the family computes from the model's own section."""
    family = spec.model.family
    section = getattr(spec.model, family.section) if family.section else None
    return {f"dataset.augmentation.{name}" for name in (family.default_sizes(section) if section else ())}


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _value(data: Any, field: str) -> Any:
    for part in field.split("."):
        data = data[part]
    return data


def _is_given(data: Any, field: str) -> bool:
    """Whether the field has a value, or one of its sections is not a mapping (a separate error)."""
    for part in field.split("."):
        if not isinstance(data, Mapping):
            return True
        if part not in data:
            return False
        data = data[part]
    return True


def _set(data: dict[str, Any], field: str, value: Any) -> None:
    *sections, leaf = field.split(".")
    for section in sections:
        data[section] = data = dict(data.get(section, {}))
    data[leaf] = value
