"""Telling faults of the machine from damage in a file.

A machine without free file descriptors or memory, a failing disk and a network file system that does not answer make
every file look damaged. Such a fault is tried again a few times and then ends the run as a `MachineError`; only what is
wrong with a file itself is an error of the data.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from rtdetr_tool.errors import MachineError
from rtdetr_tool.files import open_regular

try:
    import resource
except ImportError:  # Windows
    resource = None

T = TypeVar("T")

PAUSES = (0.1, 0.5, 1.5)  # seconds before each further attempt

_OPEN_FILES, _MEMORY = ("EMFILE", "ENFILE"), ("ENOMEM", "ENOBUFS")
_STORAGE = (
    "EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EBUSY", "EREMOTEIO", "ENOLCK", "ENOLINK", "ENOTCONN",
    "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET",
    "ESHUTDOWN", "EPROTO", "ECOMM", "ENOKEY", "EKEYEXPIRED",
)  # fmt: skip
_FAULTS = {
    getattr(errno, name): kind
    for kind, names in (("files", _OPEN_FILES), ("memory", _MEMORY), ("storage", _STORAGE))
    for name in names
    if hasattr(errno, name)
}
_ADVICE = {
    "files": "Raise the limit of open files (`ulimit -n`{limit}) or lower dataset.workers",
    "memory": "Free memory, or lower dataset.workers and dataset.batch_size",
    "storage": "Check the disk, the network and the mount that the file is on",
    "access": "Check the permissions of its folder",
    "gone": "Check that the disk or network share is still mounted",
}
_PROBE = 512 << 20  # bytes; more than decoding the largest image that is accepted takes at once
_LARGEST_CHECK = 1 << 30  # bytes that are read to see whether a file can be read at all


def kind_of(error: BaseException) -> str | None:
    """Which fault of the machine an error stands for (a key of the advice); None for every other error."""
    if isinstance(error, MemoryError):
        return "memory" if _memory_lacks() else None  # else a damaged file asked for an absurd amount
    return _FAULTS.get(error.errno) if isinstance(error, OSError) else None


def machine_error(kind: str, what: str, error: BaseException | str) -> MachineError:
    """What to raise for a fault; `what` could not be read."""
    reason = error if isinstance(error, str) else getattr(error, "strerror", None) or str(error) or "out of memory"
    advice = _ADVICE[kind].format(limit=_limit_of_open_files())
    return MachineError(
        f"{what} cannot be read: {reason}. This is a fault of the machine, not of the file. {advice}, then start the "
        "same command again."
    )


def retried(read: Callable[[], T], path: str | os.PathLike) -> T:
    """What `read` gives. A fault of the machine is tried again after each of `PAUSES`; other errors pass through.

    Raises:
        MachineError: the fault stays.
    """
    for pause in (*PAUSES, None):
        try:
            return read()
        except (OSError, MemoryError) as error:
            kind = kind_of(error)
            if kind is None and isinstance(error, PermissionError) and not _searchable(os.path.dirname(path)):
                kind, pause = "access", None
            if kind is None:
                raise
            if pause is None:
                raise machine_error(kind, os.fspath(path), error) from error
            time.sleep(pause)
    raise AssertionError("unreachable")


def check_readable(path: str | os.PathLike) -> None:
    """Read a file that could not be used, because decoders hide why they got no bytes: MachineError for a fault."""

    def read() -> None:
        with open_regular(path) as file:
            while file.read(1 << 20) and file.tell() < _LARGEST_CHECK:
                pass

    try:
        retried(read, path)
    except OSError:
        return  # no fault of the machine


def check_folder(path: str) -> None:
    """MachineError where the folder of a file that was there is gone: it has been unmounted, most likely."""
    folder = os.path.dirname(path) or "."
    try:
        os.stat(folder)
    except OSError as error:
        raise machine_error(kind_of(error) or "gone", f"The folder {folder}", error) from error


def names_in(folder: str) -> list[str]:
    """The names in a folder, sorted; none where there is no such folder. MachineError where it cannot be read."""
    try:
        return sorted(retried(lambda: os.listdir(folder or "."), os.path.join(folder, "")))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError as error:
        raise machine_error("access", f"The folder {folder}", error) from error


def walked(folder: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` that does not pass over folders which cannot be read."""

    def fail(error: OSError) -> None:
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise machine_error(kind_of(error) or "access", f"The folder {error.filename}", error) from error

    return os.walk(folder, onerror=fail)


def exists(path: str) -> bool:
    """Whether there is such a file; MachineError where that cannot be found out."""
    try:
        retried(lambda: os.stat(path), path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except PermissionError as error:
        raise machine_error("access", path, error) from error
    return True


def _searchable(folder: str) -> bool:
    """Whether files can be opened in a folder and in those above it."""
    try:
        os.stat(os.path.join(folder or ".", "."))
    except OSError:
        return False
    return True


def _memory_lacks() -> bool:
    try:
        np.empty(_PROBE, np.uint8)
    except MemoryError:
        return True
    return False


def _limit_of_open_files() -> str:
    if resource is None:
        return ""
    return f", now {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}"
