"""The JSON document that a command prints with `--json`: what it returned, measured and wrote, or why it failed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rtdetr_tool.files import recording_writes
from rtdetr_tool.redaction import mask_secrets, without_secrets

MOST_FILES = 20  # of a folder that are listed one by one
_OWN_FILES = ("status.json",)  # that each command updates all the time


class CommandOutput:
    """What a command has to say to programs.

    Attributes:
        results: plain data of the command's own kind.
        metrics: the KPIs of `status.json`.
        bare: print `results` alone, without the envelope.
        error: the message of a command that failed.
    """

    def __init__(self) -> None:
        self.results: Any = None
        self.metrics: Mapping[str, float | None] = {}
        self.results_dir: str | None = None
        self.bare = False
        self.error: str | None = None
        self._files: dict[Path, None] = {}

    def add_file(self, path: Path) -> None:
        self._files[Path(os.path.abspath(path))] = None

    def files(self) -> list[str]:
        """The written files that still exist, sorted; a folder with many of them ends in a slash and stands for all."""
        by_folder: dict[Path, list[str]] = {}
        for path in [path for path in list(self._files) if path.exists() and path.name not in _OWN_FILES]:
            by_folder.setdefault(path.parent, []).append(str(path))
        parts = [[f"{folder}/"] if len(names) > MOST_FILES else names for folder, names in by_folder.items()]
        return sorted(name for names in parts for name in names)

    def to_dict(self, command: str, exit_code: int) -> Any:
        if self.error is None and self.bare:
            return self.results
        content: dict[str, Any] = {"command": command, "exit_code": exit_code}
        if exit_code != 0:
            content["error"] = self.error or "finished with problems"
        content |= {
            "results_dir": self.results_dir,
            "results": self.results,
            "metrics": dict(self.metrics),
            "files": self.files(),
        }
        return content


_current = CommandOutput()


def command_output() -> CommandOutput:
    """The output of the running command."""
    return _current


@contextmanager
def collecting_output() -> Iterator[CommandOutput]:
    """A new `CommandOutput` for a command, also for one that runs inside another, such as a trial of a search."""
    global _current
    outer, _current = _current, CommandOutput()
    output = _current
    try:
        with recording_writes(lambda path: output.add_file(path) if _current is output else None):
            yield output
    finally:
        _current = outer


@contextmanager
def stdout_to_stderr(program: bool) -> Iterator[TextIO]:
    """Send everything that is printed to stderr meanwhile; yields the stream for the document.

    Args:
        program: also redirect the file descriptor, on which libraries and other processes write.
    """
    stream, kept = sys.stdout, None
    if program:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()
            kept = os.dup(1)
            os.dup2(2, 1)
            stream = os.fdopen(kept, "w", encoding="utf-8", closefd=False)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield stream
    finally:
        if kept is not None:
            with contextlib.suppress(OSError):
                stream.flush()
            os.dup2(kept, 1)
            os.close(kept)


def write_document(content: Any, stream: TextIO) -> None:
    """Print one JSON document without secrets, NaN and infinity."""
    stream.write(json.dumps(_plain(without_secrets(content)), indent=2, allow_nan=False) + "\n")
    stream.flush()


def _plain(value: Any) -> Any:
    """The value as JSON has it: undefined numbers are null, other objects are text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int)):
        return value
    return mask_secrets(str(value))
