"""References in a spec: `${results_dir}/train` for another field, `${oc.env:HOME}` for an environment variable.

OmegaConf's notation, restricted to these two forms, so that a spec cannot compute anything and its size is bounded:

    ${a.b}  ${a.b[0]}  ${.sibling}  ${..uncle}     a field, of the file, the command line or the defaults
    ${oc.env:NAME}  ${oc.env:NAME,otherwise}       an environment variable (see `environment`)
"""

from __future__ import annotations

import re
from typing import Any

from rtdetr_tool.spec.environment import variable
from rtdetr_tool.spec.fields import MISSING

LONGEST_TEXT = 10_000  # characters of a string with its references expanded

_FIELD = re.compile(r"\.*[\w-]+(?:\.[\w-]+|\[\d+\])*")
_ENVIRONMENT = re.compile(r"oc\.env:\s*(\w+)\s*(?:,(.*))?", re.S)


_NOTHING = object()


class _Unresolved(Exception):
    """The message is the reason."""


def resolve(data: dict[str, Any], defaults: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """`data` with every reference replaced by its value; one without a value is a problem, and its key is dropped."""
    return dict(_Resolver(_merged(defaults, data), problems).expand(data, ()))


class _Resolver:
    def __init__(self, full: dict[str, Any], problems: list[str]) -> None:
        self.full, self.problems = full, problems
        self.known: dict[tuple[str | int, ...], Any] = {}  # by location: the value, or the reason why there is none

    def expand(self, value: Any, place: tuple[str | int, ...]) -> Any:
        """A part of the user's data with references expanded; targets of several references are shared, not copied."""
        if isinstance(value, dict):
            items = ((key, self.expand(inner, (*place, key))) for key, inner in value.items())
            return {key: inner for key, inner in items if inner is not _NOTHING}
        if isinstance(value, list):
            return [self.expand(inner, (*place, index)) for index, inner in enumerate(value)]
        if not (isinstance(value, str) and "${" in value):
            return value
        try:
            return self.value_at(place)
        except _Unresolved as why:
            self.problems.append(f"{_name(place)}: '{value[:200]}' cannot be resolved: {why}")
            return _NOTHING if isinstance(place[-1], str) else MISSING

    def value_at(self, place: tuple[str | int, ...]) -> Any:
        """The value at a location of the full spec, with its references expanded."""
        if place not in self.known:
            self.known[place] = _Unresolved("it refers to itself")
            try:
                self.known[place] = self._value(self._raw(place), place)
            except _Unresolved as why:
                self.known[place] = why
            except RecursionError:
                self.known[place] = _Unresolved("the chain of references is too long")
        value = self.known[place]
        if isinstance(value, _Unresolved):
            raise _Unresolved(str(value))
        return value

    def _raw(self, place: tuple[str | int, ...]) -> Any:
        value: Any = self.full
        for key in place:
            is_index = isinstance(value, list) and isinstance(key, int) and key < len(value)
            if not is_index and not (isinstance(value, dict) and key in value):
                raise _Unresolved(f"{_name(place)} does not exist")
            value = value[key]
        return value

    def _value(self, value: Any, place: tuple[str | int, ...]) -> Any:
        if isinstance(value, dict):
            return {key: self.value_at((*place, key)) for key in value}
        if isinstance(value, list):
            return [self.value_at((*place, index)) for index in range(len(value))]
        return self._text(value, place) if isinstance(value, str) and "${" in value else value

    def _text(self, text: str, place: tuple[str | int, ...]) -> Any:
        """A string with its references expanded; a lone reference keeps its value's type. `\\${` is an escaped `${`."""
        parts: list[Any] = []
        position = 0
        while (start := text.find("${", position)) >= 0:
            if text[:start].endswith("\\"):
                parts.append(text[position : start - 1] + "${")
                position = start + 2
                continue
            end = _closing(text, start)
            parts.append(text[position:start])
            parts.append(self._referred(str(self._text(text[start + 2 : end], place)).strip(), place))
            position = end + 1
        parts.append(text[position:])
        single = [part for part in parts if part != ""]
        if len(single) == 1:
            return single[0]
        if any(isinstance(part, (dict, list)) for part in parts):
            raise _Unresolved("a section or list cannot be part of a string")
        joined = "".join(map(str, parts))
        if len(joined) > LONGEST_TEXT:
            raise _Unresolved(f"the result has more than {LONGEST_TEXT} characters")
        return joined

    def _referred(self, reference: str, place: tuple[str | int, ...]) -> Any:
        environment = _ENVIRONMENT.fullmatch(reference)
        if environment:
            try:
                return variable(*environment.groups())
            except ValueError as why:
                raise _Unresolved(str(why)) from None
        if not _FIELD.fullmatch(reference):
            raise _Unresolved(f"${{{reference}}} is invalid; expected a field or oc.env:NAME")
        up = len(reference) - len(reference.lstrip("."))
        if up > len(place):
            raise _Unresolved(f"${{{reference}}} is outside of the spec")
        keys = re.findall(r"[\w-]+", reference)
        target = self._place(place[: len(place) - up] if up else (), keys)
        value = self.value_at(target)
        if isinstance(value, str) and value == MISSING:
            raise _Unresolved(f"{_name(target)} is not set")
        return value

    def _place(self, start: tuple[str | int, ...], keys: list[str]) -> tuple[str | int, ...]:
        """The location of these keys, with integers as indices of lists."""
        value: Any = self.full
        for key in start:
            value = value[key]
        place = start
        for key in keys:
            index = int(key) if isinstance(value, list) and re.fullmatch(r"\d{1,9}", key) else None
            place = (*place, key if index is None else index)
            if index is not None:
                value = value[index] if index < len(value) else None
            else:
                value = value.get(key) if isinstance(value, dict) else None
        return place


def _closing(text: str, start: int) -> int:
    """End of the reference that starts here; it may contain others."""
    depth = 0
    for mark in re.finditer(r"\$\{|\}", text[start:]):
        depth += 1 if mark.group() == "${" else -1
        if depth == 0:
            return start + mark.start()
    raise _Unresolved("a reference is not closed with }")


def _merged(defaults: Any, given: Any) -> Any:
    """The defaults, overridden by the user's values; lists are replaced as a whole."""
    if not (isinstance(defaults, dict) and isinstance(given, dict)):
        return given
    return {**defaults, **{key: _merged(defaults.get(key), value) for key, value in given.items()}}


def _name(place: tuple[str | int, ...]) -> str:
    """`a.b[0]`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).lstrip(".")
