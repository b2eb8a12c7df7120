"""Values that a command can rely on once its spec has been checked: required fields and the results folder."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, TypeVar

from rtdetr_tool.errors import SpecError
from rtdetr_tool.spec.fields import is_blank

T = TypeVar("T")


class CommandSection(Protocol):
    """What the sections of all commands have in common."""

    @property
    def results_dir(self) -> str | None: ...


def required(value: T | None, name: str) -> T:
    """The value of a field that its command requires; SpecError if it is not set."""
    if value is None or is_blank(value):
        raise SpecError(f"{name}: required, but not set")
    return value


def results_folder(section: CommandSection | None, command: str) -> Path:
    """The folder of a command's results, which `spec.load` has filled in for the command that runs."""
    return Path(required(section.results_dir if section is not None else None, f"{command}.results_dir"))
