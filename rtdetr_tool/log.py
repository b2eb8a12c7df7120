"""Console output and the log file of a run.

Messages go through `logging.getLogger("rtdetr_tool...")`. The console shows INFO and above without decoration; the log
file contains everything, including warnings of libraries. Both mask secrets and escape terminal control characters,
because file and class names are untrusted.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import stat
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtdetr_tool.redaction import mask_secrets

if TYPE_CHECKING:
    from rich.console import Console

PACKAGE = "rtdetr_tool"
# Control characters except tab and line feed, Unicode line separators and bidirectional marks, and surrogates (bytes
# of a file name that are not UTF-8), which cannot be encoded.
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class _Lossy(io.FileIO):
    """A stream that drops output it cannot write, for example after a pipe or terminal was closed."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def drop_failing_output(name: str) -> None:
    """Make `stdout` or `stderr` of this process lossy, so that a run survives losing its terminal.

    The log file has the same messages. A stream that was replaced by someone else is left alone.
    """
    stream = getattr(sys, name)
    if stream is None or stream is not getattr(sys, f"__{name}__"):
        return
    try:
        raw = _Lossy(stream.fileno(), "w", closefd=False)
    except (OSError, ValueError):  # started without this stream
        return
    options = {"encoding": stream.encoding, "errors": "backslashreplace", "line_buffering": True}
    setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw), **options))


def drop_stdout() -> None:
    """Discard what is still buffered for stdout, so that Python does not report a broken pipe on exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@cache
def console() -> Console:
    """The console for people, on stderr; results for other programs go to stdout or to files. Silent with `--quiet`.

    Text is printed literally, in tables too: no markup, no emoji codes, no terminal control sequences.
    """
    return _new_console()


@cache
def _console_of_messages() -> Console:
    """The console of warnings and errors, which is never silent. One console has tables and messages otherwise, because
    it moves the progress bar out of their way."""
    return _new_console()


def set_quiet(quiet: bool) -> None:
    """Show only warnings and errors on the console from now on, or everything again."""
    console().quiet = quiet
    for handler in logging.getLogger(PACKAGE).handlers:
        if isinstance(handler, _ConsoleHandler) and handler.level <= logging.WARNING:
            handler.setLevel(logging.WARNING if quiet else logging.INFO)


def _new_console() -> Console:
    from rich.console import Console
    from rich.text import Text

    class PlainConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(escape_controls(text), **{**options, "markup": False, "emoji": False})

    return PlainConsole(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


def escape_controls(text: str) -> str:
    """Escape terminal control characters as Python would, so that `\\x1b[2J` does not clear the screen."""
    return _CONTROL_CHARACTERS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def showable(text: str) -> str:
    """Text that is safe for the console and log files: secrets masked, control characters escaped."""
    return escape_controls(mask_secrets(text))


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        style = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "bold red"}.get(record.levelno)
        try:
            target = _console_of_messages() if console().quiet else console()
            target.print(mask_secrets(record.getMessage()), style=style)
        except Exception:
            self.handleError(record)


class LogFile(logging.FileHandler):
    """A run's log file; lines are appended."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self.warning_filters = warnings.catch_warnings()  # restores them when the file is closed

    def _open(self) -> io.TextIOWrapper:
        return open(self.baseFilename, "a", encoding=self.encoding, opener=_open_log)

    def reopen(self) -> None:
        """Open the file again after its folder was deleted."""
        self.acquire()
        try:
            if self.stream is not None:
                self.stream.close()
            self.stream = self._open()
        finally:
            self.release()


def _open_log(name: str, flags: int) -> int:
    """Open a regular file without following links or waiting for the reader of a pipe."""
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(name, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is a pipe, socket or device, not a file")
    return descriptor


class _FileFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return showable(super().format(record))


def set_up_console(rank: int = 0) -> None:
    """Show the package's messages on the console; ranks above 0 show errors only and no warnings of libraries."""
    if rank > 0:
        logging.captureWarnings(True)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # without a network its retries bury our message
    package = logging.getLogger(PACKAGE)
    package.setLevel(logging.DEBUG)
    package.propagate = False
    if not logging.getLogger().handlers:  # otherwise libraries such as Lightning add their own console handlers
        logging.getLogger().addHandler(logging.NullHandler())
    if not any(isinstance(handler, _ConsoleHandler) for handler in package.handlers):
        package.addHandler(_ConsoleHandler())
    for handler in package.handlers:
        if isinstance(handler, _ConsoleHandler):
            information = logging.WARNING if console().quiet else logging.INFO
            handler.setLevel(information if rank == 0 else logging.ERROR)


def open_log_file(path: Path) -> LogFile:
    """Log everything to `path` (append), including warnings of libraries; pass the result to `close_log_file`.

    A symbolic link raises OSError: anyone with write access to a shared folder could point it anywhere.
    """
    handler = LogFile(path)
    handler.setFormatter(_FileFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    handler.warning_filters.__enter__()
    logging.captureWarnings(True)
    warnings.simplefilter("default")
    for name in (PACKAGE, None):  # None is the root logger, which receives the messages of libraries
        logging.getLogger(name).addHandler(handler)
    return handler


def close_log_file(handler: LogFile) -> None:
    for name in (PACKAGE, None):
        logging.getLogger(name).removeHandler(handler)
    if not any(isinstance(other, LogFile) for other in logging.getLogger().handlers):
        logging.captureWarnings(False)
    handler.warning_filters.__exit__(None, None, None)
    handler.close()
