"""Renaming tensors by a table, in both directions.

A table is a sequence of (theirs, ours): starts of names, where `*` is a number that is carried over; what follows the
start is kept. The first row that fits holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from rtdetr_tool.errors import CheckpointError

Table = Sequence[tuple[str, str]]


def to_ours(state_dict: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Our names for theirs.

    Raises:
        CheckpointError: naming the tensors that have no counterpart, or two with the same one.
    """
    return _renamed(state_dict, table)


def to_theirs(state_dict: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Their names for ours; errors as in `to_ours`."""
    return _renamed(state_dict, [(ours, theirs) for theirs, ours in table])


def count(names: Sequence[str] | Mapping[str, Tensor], start: str) -> int:
    """How many different numbers follow `start`, which ends in a dot: the length of a module list."""
    return len({name[len(start) :].split(".", 1)[0] for name in names if name.startswith(start)})


def listing(names: Sequence[str], limit: int = 8) -> str:
    """The first names and how many there are besides."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def _renamed(state_dict: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    rules = [(re.compile(re.escape(old).replace(r"\*", r"(\d+)")), new.split("*")) for old, new in table]
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in state_dict.items():
        new = _first_fit(name, rules)
        if new is None:
            unknown.append(name)
        elif new in renamed:
            raise CheckpointError(f"two tensors stand for {new}")
        else:
            renamed[new] = tensor
    if unknown:
        raise CheckpointError(f"no counterpart is known for {listing(unknown)}")
    return renamed


def _first_fit(name: str, rules: list[tuple[re.Pattern, list[str]]]) -> str | None:
    for pattern, pieces in rules:
        if found := pattern.match(name):
            numbers = (*found.groups(), "")
            return "".join(piece + number for piece, number in zip(pieces, numbers, strict=True)) + name[found.end() :]
    return None
