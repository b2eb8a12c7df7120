"""The exceptions of this package.

::

    RtdetrError                 our failure; exit code 1
    ├── MachineError            the machine cannot read a file right now: open files, memory, disk, network
    ├── WriteError              a file cannot be written
    └── UserError               invalid input; exit code 2, shown as one message without a traceback; a ValueError
        ├── SpecError           the spec file or a command-line override; collects every problem
        ├── DataError           annotation files, images, class ids
        │   ├── MissingSplit    the dataset does not have the requested split
        │   ├── MissingData     a file or folder does not exist; a FileNotFoundError
        │   └── NotAnImage      an object of a type that is not an image; a TypeError
        ├── CheckpointError     a weights file that cannot be loaded, or is unsafe to load
        │   └── MissingCheckpoint   it does not exist; a FileNotFoundError
        └── DownloadError       a URL that cannot be read, or must not be

The command line turns `KeyboardInterrupt` into exit code 130 and `Preempted` into 75. A message states where the
problem is, what was found, what is expected and what to do.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence


class RtdetrError(Exception):
    """Base class of all exceptions that this package raises deliberately."""

    exit_code = 1


class MachineError(RtdetrError):
    """A fault of the machine, not of the input; the same command works once the fault is gone."""


class WriteError(RtdetrError):
    """A file cannot be written, for example because the disk is full or the results folder is gone."""


class UserError(RtdetrError, ValueError):
    """Something the user can fix: a file, a value, an option."""

    exit_code = 2


class Preempted(BaseException):
    """Raised on SIGTERM, SIGUSR1 and SIGHUP (terminal closed). Not a failure: the same command resumes the run.

    Not an `Exception`, for the same reason as `KeyboardInterrupt`: handlers that recover from errors must not catch it.
    """

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again
    signals = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))


class SpecError(UserError):
    """One or more problems in a spec; `problems` holds one line per problem."""

    def __init__(self, problems: str | Sequence[str], source: str | None = None) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        self.source = source
        where = f" in {source}" if source else ""
        count = len(self.problems)
        head = f"{count} problem{'s' if count != 1 else ''}{where}:"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in self.problems)]))


class DataError(UserError):
    """A dataset, annotation file or image cannot be used as it is."""


class MissingSplit(DataError):
    """A dataset folder does not have the requested split."""


class MissingData(DataError, FileNotFoundError):
    """An image, an annotation file or a dataset folder does not exist."""


class NotAnImage(DataError, TypeError):
    """An object of a type that is not an image."""


class CheckpointError(UserError):
    """A checkpoint is missing, corrupted, of an unknown format or unsafe."""


class MissingCheckpoint(CheckpointError, FileNotFoundError):
    """A checkpoint does not exist."""


class DownloadError(UserError):
    """A URL does not respond, responds too slowly or with too much data, or must not be read."""


def nearest_multiples(size: int, multiple: int) -> str:
    """The nearest multiples of a size as text, such as `616 or 672`; the size itself if it is a multiple."""
    if size % multiple == 0 and size:
        return str(size)
    below = size // multiple * multiple
    return f"{below} or {below + multiple}" if below else str(multiple)
