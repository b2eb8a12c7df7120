"""The exceptions of this package.

::

    RtdetrError                 our failure; exit code 1
    ├── MachineError            a file that the machine cannot read now: open files, memory, disk, network
    ├── WriteError              a file that the system does not let us write
    └── UserError               the user's input is wrong; exit code 2, shown as one message without a traceback
        ├── SpecError           the spec file or an override on the command line (carries every problem found)
        ├── DataError           annotation files, images, class ids
        │   └── MissingSplit    a data set without the split that was asked for
        ├── CheckpointError     a weights file that cannot or must not be loaded
        └── DownloadError       an address that cannot or must not be read

The command line turns `KeyboardInterrupt` into exit code 130 and `Preempted` into 75. A message says what is wrong,
where, what is allowed and what to do.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence


class RtdetrError(Exception):
    """Base of every exception raised on purpose by this package."""

    exit_code = 1


class MachineError(RtdetrError):
    """The machine, not the input, is at fault: the same command works once the fault is gone."""


class WriteError(RtdetrError):
    """The system does not let us write a file: a full disk, a results folder that is gone."""


class UserError(RtdetrError):
    """Something the user can mend: a file, a value, an option."""

    exit_code = 2


class Preempted(BaseException):
    """SIGTERM, SIGUSR1 or SIGHUP (the terminal is gone). No failure: the same command resumes where this run ended.

    Like `KeyboardInterrupt` it is no `Exception`, so that code which gets over errors does not get over it.
    """

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again
    signals = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))


class SpecError(UserError):
    """One or more problems in a spec; `problems` holds one line of text each."""

    def __init__(self, problems: str | Sequence[str], source: str | None = None) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        self.source = source
        where = f" in {source}" if source else ""
        count = len(self.problems)
        head = f"{count} problem{'s' if count != 1 else ''}{where}:"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in self.problems)]))


class DataError(UserError):
    """A data set, annotation file or image that cannot be used as it is."""


class MissingSplit(DataError):
    """A data set, named by its folder, that has no split of this name."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, foreign or unsafe."""


class DownloadError(UserError):
    """An address that does not answer, answers too slowly or too much, or must not be read."""


def nearest_multiples(size: int, multiple: int) -> str:
    """`616 or 672`: the multiples below and above a size, or the size itself where it is one."""
    if size % multiple == 0 and size:
        return str(size)
    below = size // multiple * multiple
    return f"{below} or {below + multiple}" if below else str(multiple)
