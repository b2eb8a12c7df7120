"""The schema as a tree: every field with its dotted name and type."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any

from rtdetr_tool.spec.experiment import ExperimentSpec


@cache
def hints_of(cls: type) -> dict[str, Any]:
    """The resolved type of each field."""
    return typing.get_type_hints(cls)


def section_type(hint: Any) -> type | None:
    """The dataclass in `hint` (`X` or `X | None`), or None."""
    for candidate in (hint, *typing.get_args(hint)):
        if dataclasses.is_dataclass(candidate):
            return typing.cast(type, candidate) if typing.get_origin(hint) is not list else None
    return None


def item_type(hint: Any) -> type | None:
    """The dataclass of the items in `hint` (`list[X]` or `list[X] | None`), or None."""
    for candidate in (hint, *typing.get_args(hint)):
        if typing.get_origin(candidate) is list:
            return section_type(typing.get_args(candidate)[0])
    return None


def walk_fields(cls: type = ExperimentSpec, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """(dotted name, field, type) of every field and section, in order; `name[].` is the prefix of list items."""
    for entry in dataclasses.fields(cls):
        hint = hints_of(cls)[entry.name]
        yield prefix + entry.name, entry, hint
        if section := section_type(hint):
            yield from walk_fields(section, f"{prefix}{entry.name}.")
        elif item := item_type(hint):
            yield from walk_fields(item, f"{prefix}{entry.name}[].")


@cache
def field_names() -> tuple[str, ...]:
    """Dotted names of all fields and sections."""
    return tuple(name for name, _, _ in walk_fields())
