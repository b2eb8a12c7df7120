"""Keyword arguments of another package that the Python API supports, and their meaning here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

Settings = dict[str, Any]  # dotted name of a spec field -> value
Rule = str | Callable[[Any], Settings]
Status = Literal["works", "warned", "refused"]


class Keyword(NamedTuple):
    """A keyword of the other package.

    `works`: `rule` is the spec field that it sets, or a function from its value to fields. `warned`: any other value
    than the default is accepted with a warning, because it has no effect here. `refused`: any other value than the
    default is an error. `note` gives the reason and, for errors, the alternative.
    """

    name: str
    default: Any  # in the other package
    status: Status
    rule: Rule | None = None
    note: str = ""


def keyword_table(rows: tuple[Keyword, ...]) -> Mapping[str, Keyword]:
    return {row.name: row for row in rows}
