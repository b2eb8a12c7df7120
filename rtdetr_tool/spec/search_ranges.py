"""Ranges of fields to search, as `automl.parameters` gives them, checked against the declarations of the fields."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rtdetr_tool.spec.convert import from_plain, shown
from rtdetr_tool.spec.experiment import ExperimentSpec
from rtdetr_tool.spec.schema import walk_fields

RANGE_KEYS = ("min", "max", "log", "step", "choices")


@dataclass(frozen=True)
class Parameter:
    """A field to search: a range of numbers, or choices."""

    name: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    whole: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def text(self) -> str:
        """`0.0001 to 0.01 (log)`, `1 to 6`, `[2, 3, 4]`."""
        if self.choices:
            return str(list(self.choices))
        notes = [*(["log"] if self.log else []), *([f"step {self.step:g}"] if self.step else [])]
        return f"{self.low:g} to {self.high:g}" + (f" ({', '.join(notes)})" if notes else "")


def with_values(explicit: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested plain data with values by dotted name, without the `automl` section."""
    data: dict[str, Any] = {key: value for key, value in explicit.items() if key != "automl"}
    for name, value in values.items():
        *sections, leaf = name.split(".")
        inner = data
        for part in sections:
            inner[part] = dict(inner.get(part) or {})
            inner = inner[part]
        inner[leaf] = value
    return data


def declared() -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    return {name: (entry, hint) for name, entry, hint in walk_fields()}


def number_type(name: str) -> type | None:
    """int or float for a field with one number, otherwise None."""
    hint = declared()[name][1]
    kinds = [kind for kind in (hint, *typing.get_args(hint)) if kind is not type(None)]
    return next((kind for kind in (int, float) if kind in kinds), None)


def given_parameter(name: str, given: Any, problems: list[str]) -> Parameter | None:
    """The parameter of a range in the spec."""
    place = f"automl.parameters.{name}"
    if isinstance(given, (list, tuple)):
        given = {"choices": list(given)}
    if not isinstance(given, Mapping):
        problems.append(f"{place}: {shown(given)} is invalid; expected {{min, max}}, {{choices}} or null")
        return None
    unknown = [key for key in given if key not in RANGE_KEYS]
    if unknown:
        problems.append(f"{place}: {', '.join(map(str, unknown))} is invalid; expected {', '.join(RANGE_KEYS)}")
        return None
    if "choices" in given:
        return _choices(name, place, given, problems)
    kind = number_type(name)
    if kind is None or not {"min", "max"} <= given.keys():
        expected = "choices, because the field is not a number" if kind is None else "min and max, or choices"
        problems.append(f"{place}: {shown(dict(given))} is invalid; expected {expected}")
        return None
    low, high, step = (given.get(key) for key in ("min", "max", "step"))
    for value in (low, high):
        problems += _value_problems(place, name, value)
    try:
        numbers = [float(value) for value in (low, high, step) if value is not None]
    except (TypeError, ValueError):
        problems.append(f"{place}: {shown(dict(given))} is invalid; expected numbers for min, max and step")
        return None
    low, high, log = numbers[0], numbers[1], given.get("log", False)
    if not isinstance(log, bool):
        problems.append(f"{place}.log: {shown(log)} is invalid; expected true or false")
    elif not low < high:
        problems.append(f"{place}: min {low:g} and max {high:g} are invalid; expected min below max")
    elif step is not None and not (0 < numbers[2] <= high - low and (kind is float or numbers[2] == int(numbers[2]))):
        problems.append(f"{place}.step: {shown(step)} is invalid; expected a part of the range, such as 1")
    elif log and step is not None:
        problems.append(f"{place}: log and step cannot both be set")
    elif log and low <= 0:
        problems.append(f"{place}: min {low:g} is invalid with log; expected a value above 0")
    else:
        return Parameter(name, low, high, log, numbers[2] if step is not None else None, kind is int)
    return None


def _choices(name: str, place: str, given: Mapping[str, Any], problems: list[str]) -> Parameter | None:
    choices = given["choices"]
    if len(given) > 1:
        problems.append(
            f"{place}: choices cannot be combined with {', '.join(key for key in given if key != 'choices')}"
        )
    elif not isinstance(choices, (list, tuple)) or not choices:
        problems.append(f"{place}.choices: {shown(choices)} is invalid; expected a list of values")
    elif any(choice in choices[:number] for number, choice in enumerate(choices)):
        problems.append(f"{place}.choices: {shown(choices)} is invalid; expected different values")
    else:
        for choice in choices:
            problems += _value_problems(place, name, choice)
        return Parameter(name, choices=tuple(choices))
    return None


def _value_problems(place: str, name: str, value: Any) -> list[str]:
    """The problems of a value according to the field's declaration."""
    problems: list[str] = []
    from_plain(ExperimentSpec, with_values({}, {name: value}), problems)
    return [f"{place}: {problem.removeprefix(f'{name}: ')}" for problem in problems]
