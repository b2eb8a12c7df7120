"""`status.json`: one JSON object per line, in the format that TAO's monitoring reads.

Only the first process of a run writes. The file is replaced by one with a line more: of a line that is appended, a
reader may see a part (systems show a write page by page). A run ends with SUCCESS or FAILURE, also on a full disk: a
little space is kept aside for that line, and where there is no room for a second file it is appended after all.
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

LARGEST_FILE = 64 << 20  # bytes; lines are appended to a larger file, which is not written anew with each
_RESERVE = 16 * 1024  # bytes, for the last line


def process_rank() -> int:
    """Rank of this process among all of the run, from torchrun's, SLURM's or Lightning's environment."""
    if "RANK" in os.environ:
        return int(os.environ["RANK"])
    local, node = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("NODE_RANK", 0))
    if local or node:
        return max(local, node)
    return int(os.environ.get("SLURM_PROCID", 0))


class StatusLogger:
    """Appends status lines to a file; does nothing without a path or in processes other than the first.

    `kpi` values stay on later lines until they change, as in TAO; they are numbers, or null where they are undefined.
    `clean` takes secrets out of messages; `replace` is what gives a file other content, all at once
    (`files.write_atomically`), and without it lines are appended. A link in place of the file is not followed.
    `confirm` is called before anything is written: it raises where the folder is no longer this run's, which then
    writes nothing there.
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
        """Raise `RtdetrError` where the results folder is another run's by now; one that was deleted is made again."""
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
        if self.path is None:
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
            self._append((json.dumps(line) + "\n").encode(), last=status in ("SUCCESS", "FAILURE"))

    def close(self) -> None:
        """Nothing more will be written: give the space back that was kept for the last line."""
        if self._reserve is not None and not self._lost:
            with contextlib.suppress(OSError):
                self._reserve.unlink(missing_ok=True)

    def _append(self, data: bytes, last: bool) -> None:
        try:
            if last:
                self.close()
            elif not self._reserve.exists():
                with contextlib.suppress(OSError), self._reserve.open("xb") as file:  # x follows no link
                    file.write(b"\0" * _RESERVE)
            self._add(data)
        except OSError as error:  # a full disk must not end a run that may get over it
            logger.warning("%s cannot be written: %s", self.path, error.strerror or error)

    def _earlier_lines(self) -> bytes:
        if not self.path.exists():
            return b""
        if not _is_regular(self.path):
            raise OSError(errno.EINVAL, "it is a pipe, socket or device, not a file")
        if self.path.stat().st_size > LARGEST_FILE:
            raise OSError(errno.EFBIG, "it is appended to")
        return self.path.read_bytes()

    def _add(self, data: bytes) -> None:
        if self._replace is not None and not self.path.is_symlink():
            with contextlib.suppress(OSError):
                self._replace(self.path, self._earlier_lines() + data)
                return
        _append_whole(self.path, data)


def _is_regular(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)


def _append_whole(path: Path, data: bytes) -> None:
    """Append all of `data` with one write, or nothing where the disk has room for a part only; links are refused."""
    no_link = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # nor is the reader of a pipe waited for
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | no_link, 0o644)
    try:
        written = os.write(descriptor, data)
        if written < len(data):
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)


def _number(value: Any) -> float | None:
    """A plain JSON number; null for None (undefined), and for not-a-number and infinity, which JSON does not have."""
    return float(value) if value is not None and math.isfinite(value) else None


_current = StatusLogger()


def current_status() -> StatusLogger:
    """The status file of the running command; one that writes nothing outside a command."""
    return _current


def set_current_status(status: StatusLogger) -> None:
    global _current
    _current = status
