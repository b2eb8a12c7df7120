"""Convert plain data (dicts, lists, numbers, strings) to the dataclasses of a spec and back.

Problems are collected, each as one line that starts with the field's dotted name.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from typing import Any

from rtdetr_tool.spec.experiment import ExperimentSpec
from rtdetr_tool.spec.fields import MISSING, default_of
from rtdetr_tool.spec.schema import field_names, hints_of
from rtdetr_tool.spec.tables import FIELD_ALIASES, VALUE_ALIASES


def suggestion(name: str) -> str:
    """`; did you mean 'x'?` for an unknown dotted name, or nothing."""
    parent, _, leaf = re.sub(r"\[\d+\]", "[]", name).rpartition(".")
    siblings = {n.rpartition(".")[2]: n for n in field_names() if n.rpartition(".")[0] == parent}
    near = difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{siblings[near[0]]}'?"
    same_leaf = [n for n in field_names() if n.rpartition(".")[2] == leaf]
    near = same_leaf[:1] or difflib.get_close_matches(name, field_names(), n=1, cutoff=0.75)
    return f"; did you mean '{near[0]}'?" if near else ""


def spec_to_dict(spec: Any) -> dict[str, Any]:
    """A spec or section as plain dicts, lists, numbers and strings."""
    return dataclasses.asdict(spec)


def from_plain(cls: Any, data: dict[str, Any], problems: list[str], prefix: str = "") -> Any:
    """An instance of the dataclass `cls`; fields with problems keep their default, and the problems are appended."""
    hints, values = hints_of(cls), {}
    known = {entry.name: entry for entry in dataclasses.fields(cls)}
    for key, value in data.items():
        name = FIELD_ALIASES.get(f"{prefix}{key}", f"{prefix}{key}")
        key = name[len(prefix) :]
        if key not in known:
            problems.append(f"{name}: no such field{suggestion(name)}")
            continue
        if key in values:
            problems.append(f"{name}: set twice, in two spellings")
            continue
        try:
            values[key] = _convert(value, hints[key], known[key], name, problems)
        except _Wrong as wrong:
            problems.append(f"{wrong.name or name}: {wrong.given} is invalid; expected {wrong.expected}")
    return cls(**values)


def shown(value: Any) -> str:
    """A value in YAML syntax, shortened: `null`, `true`, `'text'`."""
    text = {None: "null", True: "true", False: "false"}.get(value) if isinstance(value, (bool, type(None))) else None
    text = text or repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


class _Wrong(Exception):
    def __init__(self, given: Any, expected: str, name: str | None = None) -> None:
        self.given, self.expected, self.name = shown(given), expected, name


def _convert(value: Any, hint: Any, entry: dataclasses.Field[Any], name: str, problems: list[str]) -> Any:
    """`value` as `hint` within the bounds of `entry`, or `_Wrong`."""
    optional = type(None) in typing.get_args(hint)
    if optional:
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    if value is None:
        if optional or hint is Any:
            return None
        if default_of(entry) == MISSING:
            return MISSING  # nothing given yet
        raise _Wrong(value, expected_text(entry, hint))
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise _Wrong(value, "a section of fields")
        return from_plain(hint, value, problems, f"{name}.")
    if isinstance(value, str) and value == MISSING:
        default = default_of(entry)
        if default not in (MISSING, None, ""):
            raise _Wrong(value, f"{expected_text(entry, hint)}; omit the field to use its default")
        return default
    origin = typing.get_origin(hint)
    if origin is list:
        return _convert_list(value, typing.get_args(hint)[0], entry, name, problems)
    if origin is dict:
        return _convert_dict(value, typing.get_args(hint)[1], entry, name)
    return _convert_scalar(value, hint, entry, name)


def _convert_list(value: Any, item: Any, entry: dataclasses.Field[Any], name: str, problems: list[str]) -> list[Any]:
    if isinstance(value, dict) and typing.get_origin(item) is dict:
        value = [value]  # a single source stands for a list of one
    if not isinstance(value, (list, tuple)):
        raise _Wrong(value, expected_text(entry, list[item]))
    result = []
    for index, element in enumerate(value):
        place = f"{name}[{index}]"
        if dataclasses.is_dataclass(item):
            if not isinstance(element, dict):
                raise _Wrong(element, "a mapping", place)
            result.append(from_plain(item, element, problems, f"{place}."))
        elif typing.get_origin(item) is dict:
            result.append(_convert_dict(element, typing.get_args(item)[1], entry, place))
        else:
            result.append(_convert_scalar(element, item, entry, place))
    return result


def _convert_dict(value: Any, item: Any, entry: dataclasses.Field[Any], name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Wrong(value, "a mapping", name)
    return {str(k): _convert_scalar(v, item, entry, f"{name}.{k}") for k, v in value.items()}


def _convert_scalar(value: Any, hint: Any, entry: dataclasses.Field[Any], name: str) -> Any:
    if hint is Any:
        return value
    value = VALUE_ALIASES.get(name, {}).get(value, value) if isinstance(value, str) else value
    rules = entry.metadata
    for word, meaning in rules["names"].items():
        if value == meaning or (isinstance(value, str) and value.lower() == word):
            return meaning
    result = _CASTS[hint](value)
    wrong = (
        result is None
        or (rules["min"] is not None and result < rules["min"])
        or (rules["max"] is not None and result > rules["max"])
        or (rules["above"] is not None and result <= rules["above"])
    )
    prefix = rules["prefix"]
    free = prefix and isinstance(result, str) and len(result) > len(prefix) and result.startswith(prefix)
    if not wrong and not free and rules["options"] is not None and result not in rules["options"]:
        match = [o for o in rules["options"] if str(o).lower() == str(result).lower()]
        wrong, result = not match, match[0] if match else None
    if wrong:
        raise _Wrong(value, expected_text(entry, hint, value), name)
    return result


def _to_bool(value: Any) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}.get(value.lower())
    return value if isinstance(value, bool) else None


def _to_int(value: Any) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,18}\s*", value):
        return int(value)
    number = _to_float(value)
    return int(number) if number is not None and number == int(number) else None


def _to_float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _to_str(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


_CASTS = {bool: _to_bool, int: _to_int, float: _to_float, str: _to_str}

_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a text", Any: "any value"}


def expected_text(entry: dataclasses.Field[Any], hint: Any, given: Any = None) -> str:
    """The accepted values as text, with the option nearest to `given`."""
    rules = entry.metadata
    if isinstance(hint, types.UnionType) or type(None) in typing.get_args(hint):
        inner = next(a for a in typing.get_args(hint) if a is not type(None))
        return f"{expected_text(entry, inner)} or null"
    if dataclasses.is_dataclass(hint):
        return "a section of fields"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict:
        return "a mapping"
    if origin is list:
        return f"a list, each item {expected_text(entry, arguments[0])}"
    if rules["options"] is not None:
        near = difflib.get_close_matches(str(given), [str(o) for o in rules["options"]], n=1, cutoff=0.5)
        hint_text = f" (did you mean '{near[0]}'?)" if near else ""
        return f"one of {options_text(entry)}{hint_text}"
    return " or ".join([_WORDS.get(hint, "a value") + bounds_text(entry), *rules["names"]])


def options_text(entry: dataclasses.Field[Any]) -> str:
    """The options as text, with the accepted prefix: `a, b, x/NAME`; empty without options."""
    rules = entry.metadata
    names = [str(option) or '""' for option in rules["options"] or ()]
    return ", ".join([*names, f"{rules['prefix']}NAME"] if rules["prefix"] else names)


def bounds_text(entry: dataclasses.Field[Any]) -> str:
    """` from 1 to 4`, ` of at least 1`, ` above 0`, or an empty string."""
    low, high, above = (entry.metadata[key] for key in ("min", "max", "above"))
    high = None if high is not None and math.isinf(high) else high
    if above is not None:
        return f" above {above:g}" + (f" and up to {high:g}" if high is not None else "")
    if low is not None:
        return f" from {low:g} to {high:g}" if high is not None else f" of at least {low:g}"
    return f" of at most {high:g}" if high is not None else ""


def changed_from_default(name: str, spec: ExperimentSpec) -> bool:
    """Whether the field with this dotted name differs from its default; False inside an absent section."""
    *sections, leaf = name.split(".")
    section: Any = spec
    for part in sections:
        section = getattr(section, part)
        if section is None:
            return False
    entry = next(entry for entry in dataclasses.fields(section) if entry.name == leaf)
    return bool(getattr(section, leaf) != default_of(entry))
