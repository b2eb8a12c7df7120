"""One run at a time in a results folder.

The lock is a record lock (`fcntl`) on `.run.lock` in the folder, with a line of JSON that says who holds it. The
system lets go of it when the process ends, however it ends, and NFS passes it on to other machines; data workers do not
inherit it. A run removes the file at its end, so one that is there and not locked is of a run that was killed. On file
systems without such locks the line decides: a process of this machine is looked up by its id and the time at which it
was started.
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
    fcntl = None  # type: ignore[assignment]

NAME = ".run.lock"
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


class RunLock:
    """`RunLock(folder, "train")` holds the folder until `release`; UserError when another run does.

    `stale` describes a run that held it before and ended without letting go (killed, or its machine failed).
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
                if not self._is_in_place():  # its holder removed it between our two steps
                    os.close(self._descriptor)
                    continue
                self.stale = _describe(owner) if owner else None
                self._write(json.dumps(_this_process(self._command)) + "\n")
            except BaseException:
                os.close(self._descriptor)
                raise
            return

    def renew(self) -> bool:
        """Whether the lock, perhaps with its folder, was gone and is made again; UserError when another run has it."""
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
        if self._is_in_place():  # else somebody took it for left over and removed it: what is there now is another's
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _take(self) -> dict[str, Any] | None:
        """Lock the file; who had it before, where that was not cleared."""
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "no record locks")
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = self._read()
            if error.errno not in _NO_LOCKS:
                raise UserError(self._refusal(owner)) from None
            if owner and _may_run(owner):
                raise UserError(f"{self._refusal(owner)} If that run is gone, delete {self.path}.") from None
            return owner
        return self._read()

    def _refusal(self, owner: dict[str, Any] | None) -> str:
        who = _describe(owner) if owner else "a run that has just begun"
        return (
            f"the results folder {self.path.parent} is in use by {who}. "
            "Wait for it to end, or give another folder with -r or results_dir=..."
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
    """Whether the process of that line may be alive; one of another machine cannot be looked up."""
    if owner.get("host") != socket.gethostname():
        return True
    started = _start_time(owner.get("pid"))
    return started is not None and started == owner.get("process_started")


def _start_time(pid: Any) -> str | None:
    """When a process of this machine was started, in clock ticks since boot; process ids come again, this does not."""
    try:
        return Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, ValueError, TypeError, IndexError, OverflowError):
        return None
