"""The declaration of a spec field: default, help, bounds, and its effect on weights and files.

Nothing else in the package lists fields by name; all lists are queries over these declarations (`queries`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

MISSING = "???"  # a value that the user must set for the commands that require it

INF = float("inf")

PathUse = Literal["read", "written", "results"]
SizeKind = Literal["depth", "width", "breadth", "factor", "total"]
Reaction = Literal["refused", "warned", "elsewhere"]


class Recorded(NamedTuple):
    """What happens if the user sets another value than a model's file records.

    `elsewhere`: another comparison handles it (sizes of commands, numbering of classes).
    """

    decides: str  # what the value determines, for the message
    weights: Reaction = "refused"  # for a weights file
    graph: Reaction = "refused"  # for an ONNX file, a TFLite file or an engine, in which most settings are fixed
    only_fewer: bool = False  # a larger number has no effect


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
        names: words for values, which may be outside the bounds.
        origin: `tao` (schema of nvidia-tao-core), `seed` (TAO's documentation only) or `ours`.
        family: the only model family (`model.arch`) that reads the field or section; None = all.
        architecture: the field determines the meaning of the weights, so a spec and its checkpoint must agree on it.
        in_weights: False if the value does not follow from names and shapes of tensors, so that checkpoints of other
            programs do not have it.
        size: how the field affects the size of a network: a number of layers (depth), a width of square weights
            (width), a number multiplied with one width (breadth), a factor on the width (factor), or numbers whose
            sum is multiplied with one width (total).
        unlimited: the number does not affect the size, so a file may record any value.
        parameter_groups: the field determines the optimizer's parameter groups.
        path: the field names a file or folder that is read or written, or a results folder.
        recorded: a model's file records the value, which applies unless the user sets another one.
        commands: the commands that read the field from their spec; empty = all commands that have the section.
        unused: why the field is accepted without effect.
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
    """Whether a value counts as not set: null, empty, `???`, or a mapping or list of only those."""
    if isinstance(value, dict):
        return all(is_blank(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(is_blank(item) for item in value)
    return value in (None, "", MISSING)
