"""The one helper that declares a spec field: default, help, bounds, options, unit and origin in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

MISSING = "???"  # a value the user must give before the command that needs it runs

INF = float("inf")


def field(
    default: Any,
    help: str,
    *,
    min: float | None = None,
    max: float | None = None,
    above: float | None = None,
    options: Sequence[Any] | None = None,
    prefix: str | None = None,
    names: dict[str, Any] | None = None,
    unit: str | None = None,
    automl: bool = False,
    origin: str = "tao",
) -> Any:
    """A dataclass field of a spec.

    Args:
        default: a plain value; lists and dicts are copied for each instance. A dataclass type makes a sub-section.
        min, max: inclusive bounds, of each item for lists of numbers.
        above: exclusive lower bound.
        options: allowed values, of each item for lists.
        names: words that stand for a value, which may lie outside of the bounds.
        prefix: besides the options, any text that begins with this is allowed.
        origin: `tao` (schema of nvidia-tao-core), `seed` (TAO's documentation only) or `ours`.
    """
    metadata = {
        "help": help,
        "min": min,
        "max": max,
        "above": above,
        "options": None if options is None else tuple(options),
        "prefix": prefix,
        "names": dict(names or {}),
        "unit": unit,
        "automl": automl,
        "origin": origin,
    }
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def default_of(entry: dataclasses.Field) -> Any:
    """The default value of a dataclass field, freshly made."""
    if entry.default is not dataclasses.MISSING:
        return entry.default
    return entry.default_factory()


def is_blank(value: Any) -> bool:
    """Nothing given: null, empty, `???`, or a mapping or list of nothing but those."""
    if isinstance(value, dict):
        return all(is_blank(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(is_blank(item) for item in value)
    return value in (None, "", MISSING)
