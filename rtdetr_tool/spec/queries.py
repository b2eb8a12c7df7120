"""Queries over the declarations of all fields: the names of fields with a property.

Names are dotted, as in `model.rfdetr.hidden_dim`, in the order of the schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from rtdetr_tool.spec.fields import PathUse, Recorded, SizeKind
from rtdetr_tool.spec.schema import section_type, walk_fields


@cache
def names_with(key: str, *values: object) -> tuple[str, ...]:
    """Fields whose declaration has one of these values for `key`; without values, any but the default."""
    return tuple(
        name
        for name, entry, _ in walk_fields()
        if (entry.metadata[key] in values if values else bool(entry.metadata[key]))
    )


@cache
def architecture_fields(section: str) -> tuple[str, ...]:
    """Fields of one section (without subsections) that determine the meaning of the weights, by their last names."""
    return _in(section, names_with("architecture", True))


@cache
def architecture_sections() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Each section of a model's spec with its architecture fields; those of a teacher are checked as a model's."""
    names = (name for name in names_with("architecture", True) if not name.startswith("distill."))
    sections = dict.fromkeys(name.rpartition(".")[0] for name in names)
    return tuple((section, architecture_fields(section)) for section in sections)


@cache
def family_of(name: str) -> str | None:
    """The only model family that reads the field with this dotted name; None = all."""
    declared = _declared_families()
    parts = name.split(".")
    return next((family for n in range(len(parts), 0, -1) if (family := declared.get(".".join(parts[:n])))), None)


@cache
def _declared_families() -> Mapping[str, str | None]:
    return MappingProxyType({field: entry.metadata["family"] for field, entry, _ in walk_fields()})


@cache
def fields_of_other_families(family: str, section: str = "model") -> tuple[str, ...]:
    """Dotted names of the fields below `section` that a model of this family does not read."""
    return tuple(
        name
        for name, _, hint in walk_fields()
        if name.startswith(f"{section}.") and not section_type(hint) and not reads(family, name)
    )


def reads(family: str, name: str) -> bool:
    """Whether a model of this family reads the field with this dotted name."""
    return family_of(name) in (None, family)


@cache
def fields_not_in_weights(family: str) -> tuple[str, ...]:
    """Fields of `model` that a family reads and that do not follow from tensors, by their last names."""
    return tuple(name for name in _in("model", names_with("in_weights", False)) if reads(family, f"model.{name}"))


@cache
def size_fields(family: str, kind: SizeKind) -> tuple[str, ...]:
    """Dotted names of the fields of `model` that affect the size of a network of this family in this way."""
    names = names_with("size", kind)
    return tuple(name for name in names if name.startswith("model.") and family_of(name) == family)


@cache
def parameter_group_fields() -> tuple[str, ...]:
    """Dotted names of the fields that determine the optimizer's parameter groups."""
    return tuple(name for name in names_with("parameter_groups", True) if not name.startswith("distill."))


@cache
def recorded_fields() -> Mapping[str, Recorded]:
    """Dotted name -> what happens if the user sets another value than a file records."""
    rules = {name: entry.metadata["recorded"] for name, entry, _ in walk_fields() if entry.metadata["recorded"]}
    return MappingProxyType({name: rule for name, rule in rules.items() if not name.startswith("distill.")})


@cache
def unlimited_fields() -> tuple[str, ...]:
    """Dotted names of the numbers that do not affect the size of the network."""
    return names_with("unlimited", True)


@cache
def path_fields(section: str, *uses: PathUse) -> tuple[str, ...]:
    """Dotted names of the fields below `section` that name a file or folder; without `uses`, all of them."""
    return tuple(name for name in names_with("path", *uses) if name.startswith(f"{section}."))


@cache
def reasons(key: str) -> Mapping[str, str]:
    """Field -> reason, for `key` `unused` (accepted without effect) or `unsupported` (only the default is accepted)."""
    return MappingProxyType({name: entry.metadata[key] for name, entry, _ in walk_fields() if entry.metadata[key]})


def _in(section: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.rpartition(".")[2] for name in names if name.rpartition(".")[0] == section)
