"""Atomic writes, bounded reads and other file operations that survive crashes, full disks and hostile input."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module elsewhere

_JUST_CREATED, _ONE_DAY = 2.0, 86_400.0  # seconds; a file is locked a moment after it was created

_confirmations: dict[Path, Callable[[], None]] = {}  # by the folder below which files are written
_recorders: list[Callable[[Path], None]] = []  # called with each file that appeared under its name


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary file next to `path` (same suffix) that replaces `path` when the block succeeds.

    Content and rename are flushed to disk. If the block raises, `path` is unchanged and the temporary file is removed.
    """
    path = Path(path)
    descriptor, name = tempfile.mkstemp(prefix=_prefix(path), suffix=path.suffix, dir=path.parent)
    temporary = Path(name)
    try:
        with _held(descriptor):
            yield temporary
        _flush(temporary)
        os.chmod(temporary, 0o666 & ~_umask())
        move_into_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@contextmanager
def replacing_with_companion(path: str | os.PathLike[str], companion_of: Callable[[Path], Path]) -> Iterator[Path]:
    """Like `replacing`, for a file that may come with a companion file, whose path `companion_of` returns.

    The temporary file has the same name as `path`, in a temporary folder. Old and new files are never mixed: `path` is
    removed before its companion is replaced, and an old companion is removed if the new file has none.
    """
    path = Path(path)
    with (
        tempfile.TemporaryDirectory(prefix=_prefix(path), dir=path.parent) as folder,
        _held(os.open(folder, os.O_RDONLY)),
    ):
        temporary = Path(folder) / path.name
        yield temporary
        written = [file for file in (companion_of(temporary), temporary) if file.exists()]
        for file in written:
            _flush(file)
            os.chmod(file, 0o666 & ~_umask())
        if len(written) > 1 or companion_of(path).exists():
            path.unlink(missing_ok=True)
            companion_of(path).unlink(missing_ok=True)
            sync_directory(path.parent)
        for file in written:
            move_into_place(file, path.parent / file.name)
    sync_directory(path.parent)


@contextmanager
def replacing_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Like `replacing`, for a directory: yield the path of one that does not exist yet, in a temporary folder.

    If `path` exists, it is removed when the block succeeds, just before the new directory appears.
    """
    path = Path(path)
    with (
        tempfile.TemporaryDirectory(prefix=_prefix(path), dir=path.parent) as folder,
        _held(os.open(folder, os.O_RDONLY)),
    ):
        temporary = Path(folder) / path.name
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        if path.exists():
            os.replace(path, Path(folder) / "replaced")
        move_into_place(temporary, path)
    sync_directory(path.parent)


@contextmanager
def confirming(folder: str | os.PathLike[str], confirm: Callable[[], None]) -> Iterator[None]:
    """Call `confirm` before each file that this process moves into place below `folder`; if it raises, none is moved.

    A run confirms this way that its results folder still belongs to it, at the last moment before a file appears there.
    """
    root = Path(os.path.abspath(folder))
    _confirmations[root] = confirm
    try:
        yield
    finally:
        _confirmations.pop(root, None)


def move_into_place(temporary: Path, path: Path) -> None:
    """Rename a complete temporary file to its final name, in a folder that is still ours (`confirming`)."""
    target = Path(os.path.abspath(path))
    for root, confirm in list(_confirmations.items()):
        if root in target.parents:
            confirm()
    os.replace(temporary, path)
    for record in _recorders:
        record(path)


@contextmanager
def recording_writes(record: Callable[[Path], None]) -> Iterator[None]:
    """Call `record` with the path of each file that this process has moved into place meanwhile."""
    _recorders.append(record)
    try:
        yield
    finally:
        _recorders.remove(record)


def remove_unfinished(path: str | os.PathLike[str]) -> None:
    """Delete temporary files of `path` that killed processes left behind; those of running processes are kept."""
    path = Path(path)
    name = re.compile(rf"{re.escape(_prefix(path))}[a-z0-9_]{{8}}(?:{re.escape(path.suffix)})?")
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in [entry for entry in entries if name.fullmatch(entry.name)]:
            if _is_abandoned(entry):
                shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)


def make_folder_below(root: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Create `folder`, which is below `root`; OSError if a symbolic link on the way points outside `root`."""
    root, folder = Path(root), Path(folder)
    inside, path = os.path.realpath(root), root
    for part in folder.relative_to(root).parts:
        path = path / part
        if path.is_symlink() and os.path.commonpath([inside, os.path.realpath(path)]) != inside:
            raise OSError(errno.ELOOP, f"{path} is a link that points outside {root}; remove it")
        path.mkdir(exist_ok=True)


def _prefix(path: Path) -> str:
    return f".{path.stem}.unfinished_"


@contextmanager
def _held(descriptor: int) -> Iterator[None]:
    """Hold a lock that tells other processes that this one is still writing; closes the descriptor."""
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _is_abandoned(entry: os.DirEntry[str]) -> bool:
    """Whether no process is writing it: by its lock, or by its age (one day) where locks are not supported."""
    age = time.time() - entry.stat(follow_symlinks=False).st_mtime
    if entry.is_symlink() or age < _JUST_CREATED:
        return False
    descriptor = os.open(entry.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "no locks")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return age > _ONE_DAY
    finally:
        os.close(descriptor)
    return True


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Replace `path` with a file that has this content; text is encoded as UTF-8."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; OSError for anything else (a FIFO would block, a device never ends)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # a zero byte in the path
        raise FileNotFoundError(errno.ENOENT, str(error)) from None
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, "it is a directory")
        raise OSError(errno.EINVAL, "it is a pipe, socket or device, not a file")
    return os.fdopen(descriptor, "rb")


def read_limited(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read an untrusted file; OSError if it is not a regular file or has more than `limit` bytes."""
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it is larger than the limit of {limit} bytes")
    return data


def parse_json(text: str | bytes, **options: Any) -> Any:
    """`json.loads` for untrusted input: every error is a ValueError, including too deep nesting."""
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content as hexadecimal digits, read in chunks."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sync_directory(folder: Path) -> None:
    """Make a rename in `folder` durable; does nothing on file systems without support for it."""
    with contextlib.suppress(OSError):
        _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """The process's file mode mask (reading it means setting it for a moment); mkstemp ignores it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
