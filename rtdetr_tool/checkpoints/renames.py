"""Rename tensors by a table, in both directions, and split them by prefix.

A table is a sequence of (foreign, native) prefixes, in which `*` stands for a number. A prefix is replaced, its numbers
and the rest of the name are kept. The first matching row applies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.messages import first_of

Table = Sequence[tuple[str, str]]


def to_native(state_dict: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Replace the names of another program by ours.

    Raises:
        CheckpointError: some tensors have no counterpart, or two have the same one; the message lists them.
    """
    return _renamed(state_dict, table)


def to_foreign(state_dict: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Replace our names by those of another program; errors as for `to_native`."""
    return _renamed(state_dict, [(native, foreign) for foreign, native in table])


def count(names: Sequence[str] | Mapping[str, Tensor], start: str) -> int:
    """The number of different parts that follow `start`, which ends in a dot: the length of a module list."""
    return len({name[len(start) :].split(".", 1)[0] for name in names if name.startswith(start)})


def split_by_prefix(state_dict: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of one part, without its prefix, and the other tensors."""
    part = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
    return part, {name: tensor for name, tensor in state_dict.items() if not name.startswith(prefix)}


def _renamed(state_dict: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    rules = [(re.compile(re.escape(old).replace(r"\*", r"(\d+)")), new.split("*")) for old, new in table]
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in state_dict.items():
        new = _first_match(name, rules)
        if new is None:
            unknown.append(name)
        elif new in renamed:
            raise CheckpointError(f"two tensors map to {new}")
        else:
            renamed[new] = tensor
    if unknown:
        raise CheckpointError(f"unknown tensors {first_of(unknown, 8)}")
    return renamed


def _first_match(name: str, rules: list[tuple[re.Pattern[str], list[str]]]) -> str | None:
    for pattern, pieces in rules:
        if match := pattern.match(name):
            numbers = (*match.groups(), "")
            return "".join(piece + number for piece, number in zip(pieces, numbers, strict=True)) + name[match.end() :]
    return None
