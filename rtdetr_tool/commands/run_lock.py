"""A lock that allows one run at a time in a results folder.

The lock is a record lock (`fcntl`) on `.run.lock` in the folder, which has a line of JSON about its owner. The system
releases it when the process ends for any reason, NFS shares it with other machines, and data workers do not inherit it.
A run removes the file at its end, so a file that is not locked belongs to a run that was killed. On file systems
without such locks the line decides: a process on this machine is identified by its id and its start time.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from datetime import datetime
from pathlib import Path
from typing import Any

from rtdetr_tool.errors import UserError
from rtdetr_tool.files import parse_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module elsewhere

NAME = ".run.lock"
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


class RunLock:
    """`RunLock(folder, "train")` locks the folder until `release`; UserError if another run has locked it.

    `stale` describes an earlier run that did not release it (killed, or its machine went down).
    """

    def __init__(self, folder: Path, command: str) -> None:
        self.path, self._command = folder / NAME, command
        self.stale: str | None = None
        self._acquire()

    def _acquire(self) -> None:
        while True:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o644)
            try:
                if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                    raise UserError(f"{self.path} is a pipe, socket or device, not a lock file; remove it.")
                owner = self._take()
                if not self._is_in_place():  # its owner removed it between opening and locking
                    os.close(self._descriptor)
                    continue
                self.stale = _describe(owner) if owner else None
                self._write(json.dumps(_this_process(self._command)) + "\n")
            except BaseException:
                os.close(self._descriptor)
                raise
            return

    def renew(self) -> bool:
        """Recreate a deleted lock file and its folder; True if it was. UserError if another run has locked it."""
        if self._is_in_place():
            return False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        before = self._descriptor
        try:
            self._acquire()
        except BaseException:
            self._descriptor = before
            raise
        os.close(before)
        return True

    def release(self) -> None:
        if self._is_in_place():  # if it was deleted, a new file belongs to another run
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _take(self) -> dict[str, Any] | None:
        """Lock the file and return the previous owner if it did not remove the file."""
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "no record locks")
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = self._read()
            if error.errno not in _NO_LOCKS:
                raise UserError(self._refusal(owner)) from None
            if owner and _may_run(owner):
                raise UserError(f"{self._refusal(owner)} If that run has ended, delete {self.path}.") from None
            return owner
        return self._read()

    def _refusal(self, owner: dict[str, Any] | None) -> str:
        who = _describe(owner) if owner else "a run that has just started"
        return (
            f"the results folder {self.path.parent} is in use by {who}. "
            "Wait until it ends, or use another folder with -r or results_dir=..."
        )

    def _read(self) -> dict[str, Any] | None:
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        try:
            owner = parse_json(os.read(self._descriptor, 4096))
        except ValueError:
            return None
        return owner if isinstance(owner, dict) else None

    def _write(self, text: str) -> None:
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.write(self._descriptor, text.encode())


def _this_process(command: str) -> dict[str, Any]:
    return {
        "command": command,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_started": _start_time(os.getpid()),
        "since": datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
    }


def _describe(owner: dict[str, Any]) -> str:
    process = f"process {owner.get('pid')} on {owner.get('host')}, since {owner.get('since')}"
    return f"`rtdetr {owner.get('command')}` ({process})"


def _may_run(owner: dict[str, Any]) -> bool:
    """Whether the process of an owner may be running; on another machine this is unknown and assumed."""
    if owner.get("host") != socket.gethostname():
        return True
    started = _start_time(owner.get("pid"))
    return started is not None and started == owner.get("process_started")


def _start_time(pid: Any) -> str | None:
    """Start time of a process on this machine in clock ticks since boot, because process ids are reused."""
    try:
        return Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, ValueError, TypeError, IndexError, OverflowError):
        return None
