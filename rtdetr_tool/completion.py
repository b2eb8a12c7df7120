"""Shell completion of commands, options, spec fields and their values, through argcomplete."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import argcomplete
from argcomplete.completers import DirectoriesCompleter, FilesCompleter
from argcomplete.shell_integration import shellcode

from rtdetr_tool.spec.commands import COMMANDS, Command
from rtdetr_tool.spec.fields import is_blank
from rtdetr_tool.spec.schema import section_type, walk_fields

_ALWAYS = ("model",)  # sections that any spec may have, whatever the command


def complete(build_parser: Callable[[str], argparse.ArgumentParser]) -> None:
    """Answer the shell's request for completions and exit.

    Args:
        build_parser: the parser of a command by its name.
    """
    parser = argparse.ArgumentParser(prog="rtdetr", allow_abbrev=False)
    commands: Any = parser.add_subparsers()
    for name, row in COMMANDS.items():
        nested = build_parser(name)
        _add_completers(nested, row)
        commands.add_parser(name, help=row.summary, parents=[nested], add_help=False, allow_abbrev=False)
    argcomplete.autocomplete(parser, always_complete_options=False)


def shell_code(shell: str) -> str:
    """What a shell (bash, zsh, fish, powershell) must run to complete `rtdetr`."""
    return str(shellcode(["rtdetr"], shell=shell))


def _add_completers(parser: argparse.ArgumentParser, command: Command) -> None:
    completers = {
        "experiment_spec_file": FilesCompleter(("yaml", "yml", "json"), directories=True),
        "results_dir": DirectoriesCompleter(),
        "overrides": lambda prefix, **_: override_completions(command, prefix),
    }
    for action in parser._actions:
        if action.dest in completers:
            action.completer = completers[action.dest]  # type: ignore[attr-defined]  # read by argcomplete


def override_completions(command: Command, prefix: str) -> list[str]:
    """Completions of a `field=value` argument that starts with `prefix`."""
    name, separator, value = prefix.partition("=")
    fields = dict(_fields(command))
    if not separator:
        return [f"{field}=" for field in fields if field.startswith(name)]
    if name not in fields:
        return []
    return [f"{name}={text}" for text in _values(name, fields[name], value) if text.startswith(value)]


def _fields(command: Command) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The leaf fields of the sections that a command reads, with their declaration and type."""
    for name, entry, hint in walk_fields():
        known = name.split(".")[0] in (*command.sections, *_ALWAYS)
        if known and section_type(hint) is None and "[]" not in name and not entry.metadata.get("unused"):
            yield name, (entry, hint)


def _values(name: str, declared: tuple[Any, Any], value: str) -> Iterable[str]:
    entry, hint = declared
    options = entry.metadata.get("options")
    if options:
        return [str(option) for option in options if not is_blank(option)]
    if bool in (hint, *typing.get_args(hint)):
        return ["true", "false"]
    if entry.metadata.get("path") or name.endswith("_dir"):
        return [str(path) for path in FilesCompleter()(value)]
    return []
