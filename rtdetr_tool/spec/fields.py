"""The declaration of a spec field: its default, help and bounds, who uses it and what it means for weights and files.

Nothing else in the package lists fields by name: what others need is a query over these declarations (`queries`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

MISSING = "???"  # a value the user must give before the command that needs it runs

INF = float("inf")

PathUse = Literal["read", "written", "results"]
SizeKind = Literal["depth", "width", "breadth", "factor", "total"]
Reaction = Literal["refused", "warned", "elsewhere"]


class Recorded(NamedTuple):
    """What happens when a user gives another value than the file of a model records.

    `elsewhere`: another comparison handles it (sizes of commands, numbering of classes).
    """

    decides: str  # what the value decides, for the message
    weights: Reaction = "refused"  # for a weights file
    graph: Reaction = "refused"  # for an ONNX file, a TFLite file or an engine, which has most settings built in
    only_fewer: bool = False  # a larger number changes nothing


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
    family: str | None = None,
    architecture: bool = False,
    in_weights: bool = True,
    size: SizeKind | None = None,
    unlimited: bool = False,
    parameter_groups: bool = False,
    path: PathUse | None = None,
    recorded: Recorded | None = None,
    commands: Sequence[str] = (),
    unused: str | None = None,
    unsupported: str | None = None,
) -> Any:
    """A dataclass field of a spec.

    Args:
        default: a plain value; lists and dicts are copied for each instance. A dataclass type makes a sub-section.
        min, max: inclusive bounds, of each item for lists of numbers.
        above: exclusive lower bound.
        options: accepted values, of each item for lists.
        prefix: text with this prefix is accepted in addition to the options.
        names: words that stand for a value, which may be outside the bounds.
        origin: `tao` (schema of nvidia-tao-core), `seed` (TAO's documentation only) or `ours`.
        family: the only model family (`model.arch`) that reads the field or section; None = all.
        architecture: the field decides what the weights mean, so a spec and its checkpoint must agree on it.
        in_weights: False where no tensor's name or shape shows the value, so a foreign checkpoint cannot supply it.
        size: how the field makes a network larger: a number of layers (depth), a width of which layers hold squares
            (width), a number that goes with one width (breadth), a factor on the width (factor), or numbers that go
            with one width together (total).
        unlimited: the number makes nothing larger, so a file may record any.
        parameter_groups: the field decides which groups of parameters the optimizer keeps a state for.
        path: the field names a file or folder that is read or written, or a folder of results.
        recorded: the file of a model records the value, which applies unless the user gives another one.
        commands: the commands that take the field from their spec; empty = all commands that have the section.
        unused: why the field is accepted and has no effect.
        unsupported: why any value but the default is refused.
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
        "family": family,
        "architecture": architecture,
        "in_weights": in_weights,
        "size": size,
        "unlimited": unlimited,
        "parameter_groups": parameter_groups,
        "path": path,
        "recorded": recorded,
        "commands": tuple(commands),
        "unused": unused,
        "unsupported": unsupported,
    }
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def default_of(entry: dataclasses.Field[Any]) -> Any:
    """The default value of a dataclass field, a new object each time."""
    if entry.default is not dataclasses.MISSING:
        return entry.default
    if entry.default_factory is dataclasses.MISSING:
        raise TypeError(f"{entry.name} has no default; declare it with field()")
    return entry.default_factory()


def is_blank(value: Any) -> bool:
    """Whether a value counts as not given: null, empty, `???`, or a mapping or list of only those."""
    if isinstance(value, dict):
        return all(is_blank(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(is_blank(item) for item in value)
    return value in (None, "", MISSING)
