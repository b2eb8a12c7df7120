"""`status.json`: one JSON object per line, in the format of TAO's monitoring.

Only the first process of a run writes. Each line replaces the whole file, because a reader could see part of an
appended line. The last line is always SUCCESS or FAILURE, even on a full disk: a little space is reserved for it, and
if there is no room for a second copy of the file, the line is appended.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import stat
import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

LARGEST_FILE = 64 << 20  # bytes; lines are appended to larger files instead of rewriting them
_RESERVE = 16 * 1024  # bytes, for the last line


def process_rank() -> int:
    """Global rank of this process, from the environment of torchrun, SLURM or Lightning."""
    if "RANK" in os.environ:
        return int(os.environ["RANK"])
    local, node = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("NODE_RANK", 0))
    if local or node:
        return max(local, node)
    return int(os.environ.get("SLURM_PROCID", 0))


class StatusLogger:
    """Writes status lines to a file; does nothing without a path or on ranks above 0.

    `kpi` values are repeated on later lines until they change, as in TAO; an undefined value is null.

    Args:
        clean: removes secrets from messages.
        replace: replaces the content of a file atomically (`files.write_atomically`); without it, lines are appended.
            A symbolic link in place of the file is not followed.
        confirm: called before each write; raises if the folder now belongs to another run, and nothing is written.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        clean: Callable[[str], str] = str,
        replace: Callable[[Path, bytes], None] | None = None,
        confirm: Callable[[], None] = lambda: None,
    ) -> None:
        self.clean = clean
        self._confirm, self._lost = confirm, False
        self._replace = replace
        self.path = Path(path) if path is not None and process_rank() == 0 else None
        self.kpi: dict[str, float | None] = {}
        self.finished = False
        self._reserve = self.path.with_name(f".{self.path.name}.reserve") if self.path else None
        self._lock = threading.Lock()

    def confirm_folder(self) -> None:
        """Raise `RtdetrError` if the results folder now belongs to another run; recreate a deleted folder."""
        try:
            self._confirm()
        except Exception:
            self._lost = True
            raise

    def started(self, message: str) -> None:
        self.write("STARTED", message)

    def running(self, message: str, kpi: Mapping[str, float | None] | None = None, **details: Any) -> None:
        """`details`: epoch, step, max_epoch, max_step (numbers); time_per_epoch, time_per_step, eta (seconds)."""
        self.kpi.update(kpi or {})
        self.write("RUNNING", message, **details)

    def skipped(self, message: str) -> None:
        self.write("SKIPPED", message, verbosity="WARNING")

    def success(self, message: str) -> None:
        self.finished = True
        self.write("SUCCESS", message)

    def failure(self, message: str) -> None:
        self.finished = True
        self.write("FAILURE", message, verbosity="ERROR")

    def write(self, status: str, message: str, verbosity: str = "INFO", **details: Any) -> None:
        path = self.path
        if path is None:
            return
        with contextlib.suppress(Exception):
            self.confirm_folder()
        if self._lost:
            return
        now = datetime.now()
        line: dict[str, Any] = {
            "date": f"{now.month}/{now.day}/{now.year}",
            "time": f"{now.hour}:{now.minute}:{now.second}",
            "status": status,
            "verbosity": verbosity,
            "message": self.clean(message),
        }
        for key, value in details.items():
            if key in ("time_per_epoch", "time_per_step", "eta"):
                value = str(timedelta(seconds=round(float(value), 6)))
            line[key] = value
        if self.kpi:
            line["kpi"] = {key: _number(value) for key, value in self.kpi.items()}
        with self._lock:
            self._append(path, (json.dumps(line) + "\n").encode(), last=status in ("SUCCESS", "FAILURE"))

    def close(self) -> None:
        """Finish writing: release the space that was reserved for the last line."""
        if self._reserve is not None and not self._lost:
            with contextlib.suppress(OSError):
                self._reserve.unlink(missing_ok=True)

    def _append(self, path: Path, data: bytes, last: bool) -> None:
        try:
            if last:
                self.close()
            elif self._reserve is not None and not self._reserve.exists():
                with contextlib.suppress(OSError), self._reserve.open("xb") as file:  # x does not follow links
                    file.write(b"\0" * _RESERVE)
            self._add(path, data)
        except OSError as error:  # a full disk must not end a run that can continue without status.json
            logger.warning("%s cannot be written: %s", path, error.strerror or error)
        except Exception:  # another run has taken the folder since `write` confirmed it
            if not self._lost:
                raise

    def _add(self, path: Path, data: bytes) -> None:
        if self._replace is not None and not path.is_symlink():
            with contextlib.suppress(OSError):
                self._replace(path, _earlier_lines(path) + data)
                return
        _append_whole(path, data)


def _earlier_lines(path: Path) -> bytes:
    if not path.exists():
        return b""
    if not _is_regular(path):
        raise OSError(errno.EINVAL, "it is a pipe, socket or device, not a file")
    if path.stat().st_size > LARGEST_FILE:
        raise OSError(errno.EFBIG, "too large to rewrite")
    return path.read_bytes()


def _is_regular(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)


def _append_whole(path: Path, data: bytes) -> None:
    """Append all of `data` with one write, or nothing if the disk has room for only part of it; links are refused."""
    no_link = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # and do not wait for the reader of a pipe
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | no_link, 0o644)
    try:
        written = os.write(descriptor, data)
        if written < len(data):
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)


def _number(value: Any) -> float | None:
    """A JSON number; None for undefined values and for NaN and infinity, which JSON does not have."""
    return float(value) if value is not None and math.isfinite(value) else None


_current = StatusLogger()


def current_status() -> StatusLogger:
    """The status logger of the running command; outside of a command it writes nothing."""
    return _current


def set_current_status(status: StatusLogger) -> None:
    global _current
    _current = status
