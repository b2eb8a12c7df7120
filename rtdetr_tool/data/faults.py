"""Distinguish machine faults from corrupted files.

Without free file descriptors or memory, with a failing disk or an unresponsive network file system, every file looks
corrupted. Such faults are retried a few times and then end the run with `MachineError`. Only a problem of the file
itself is a data error.
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
    resource = None  # type: ignore[assignment]  # a module elsewhere

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
    "access": "Check the permissions of the folder",
    "gone": "Check that the disk or network share is still mounted",
}
_PROBE = 512 << 20  # bytes; more than decoding the largest accepted image allocates at once
_LARGEST_CHECK = 1 << 30  # bytes read to check that a file is readable


def kind_of(error: BaseException) -> str | None:
    """The machine fault behind an error (a key of `_ADVICE`); None for all other errors."""
    if isinstance(error, MemoryError):
        return "memory" if _is_out_of_memory() else None  # otherwise a corrupted file requested an absurd amount
    return _FAULTS.get(error.errno) if isinstance(error, OSError) else None


def machine_error(kind: str, what: str, error: BaseException | str) -> MachineError:
    """The exception to raise when `what` could not be read because of a machine fault."""
    reason = error if isinstance(error, str) else getattr(error, "strerror", None) or str(error) or "out of memory"
    advice = _ADVICE[kind].format(limit=_limit_of_open_files())
    return MachineError(
        f"{what} cannot be read: {reason}. This is a problem of the machine, not of the file. {advice}, then run the "
        "same command again."
    )


def retried(read: Callable[[], T], path: str | os.PathLike[str]) -> T:
    """Call `read`, retrying machine faults after each of `PAUSES`; other errors pass through.

    Raises:
        MachineError: the fault persists.
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


def check_readable(path: str | os.PathLike[str]) -> None:
    """Read a file that could not be decoded: MachineError for a machine fault, which decoders would hide."""

    def read() -> None:
        with open_regular(path) as file:
            while file.read(1 << 20) and file.tell() < _LARGEST_CHECK:
                pass

    try:
        retried(read, path)
    except OSError:
        return  # not a machine fault


def check_folder(path: str) -> None:
    """MachineError if the folder of a file no longer exists, most likely because it was unmounted."""
    folder = os.path.dirname(path) or "."
    try:
        os.stat(folder)
    except OSError as error:
        raise machine_error(kind_of(error) or "gone", f"The folder {folder}", error) from error


def names_in(folder: str) -> list[str]:
    """Sorted names in a folder; empty if it does not exist. MachineError if it cannot be read."""
    try:
        return sorted(retried(lambda: os.listdir(folder or "."), os.path.join(folder, "")))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError as error:
        raise machine_error("access", f"The folder {folder}", error) from error


def walked(folder: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk`, but unreadable folders raise MachineError instead of being skipped."""

    def fail(error: OSError) -> None:
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise machine_error(kind_of(error) or "access", f"The folder {error.filename}", error) from error

    return os.walk(folder, onerror=fail)


def exists(path: str) -> bool:
    """Whether a file exists; MachineError if that cannot be determined."""
    try:
        retried(lambda: os.stat(path), path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except PermissionError as error:
        raise machine_error("access", path, error) from error
    return True


def _searchable(folder: str) -> bool:
    """Whether a folder and its parents can be searched."""
    try:
        os.stat(os.path.join(folder or ".", "."))
    except OSError:
        return False
    return True


def _is_out_of_memory() -> bool:
    try:
        np.empty(_PROBE, np.uint8)
    except MemoryError:
        return True
    return False


def _limit_of_open_files() -> str:
    if resource is None:
        return ""
    return f", now {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}"
