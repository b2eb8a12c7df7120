"""The console and the log file of a run.

Messages go through `logging.getLogger("rtdetr_tool...")`; the console shows them from INFO on without decoration, the
log file of a run holds everything including warnings of the libraries. In both, secrets are masked and characters that
a terminal obeys are written out: names of files and classes are whatever somebody chose.
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
from typing import TYPE_CHECKING, Any, TextIO

from rtdetr_tool.redaction import mask_secrets

if TYPE_CHECKING:
    from rich.console import Console

PACKAGE = "rtdetr_tool"
# What a terminal obeys instead of showing it: control characters but tab and line feed, Unicode's line ends and marks
# that turn the direction of writing; and what no file can hold, bytes of a file name that are no UTF-8.
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class _Lossy(io.FileIO):
    """Output that is dropped where it cannot be written: a closed pipe, a full disk, a terminal that is gone."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def drop_failing_output(name: str) -> None:
    """Make `stdout` or `stderr` of this process lossy, so that a run survives the end of its terminal.

    What a run says is in its log file too. A stream that somebody else has put in place is left alone.
    """
    stream = getattr(sys, name)
    if stream is None or stream is not getattr(sys, f"__{name}__"):
        return
    try:
        raw = _Lossy(stream.fileno(), "w", closefd=False)
    except (OSError, ValueError):  # the program was started without it
        return
    options = {"encoding": stream.encoding, "errors": "backslashreplace", "line_buffering": True}
    setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw), **options))


def drop_stdout() -> None:
    """Let what is still in the buffer of stdout go nowhere, so that Python does not complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@cache
def console() -> Console:
    """The console for people, on stderr; results meant for other programs go to stdout or files.

    Texts stand for themselves, those in tables too: no markup, no emoji codes, nothing that a terminal obeys.
    """
    from rich.console import Console
    from rich.text import Text

    class PlainConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(written_out(text), **{**options, "markup": False, "emoji": False})

    return PlainConsole(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


def written_out(text: str) -> str:
    """The text with what a terminal obeys as its escape sequence in Python: `\\x1b[2J` clears no screen."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def showable(text: str) -> str:
    """The text as people may see it, on the console and in log files: without secrets, and written out."""
    return written_out(mask_secrets(text))


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        style = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "bold red"}.get(record.levelno)
        try:
            console().print(mask_secrets(record.getMessage()), style=style)
        except Exception:
            self.handleError(record)


class LogFile(logging.FileHandler):
    def _open(self) -> TextIO:
        return open(self.baseFilename, self.mode, encoding=self.encoding, opener=_open_log)

    def reopen(self) -> None:
        """Write into a file that is there: the folder of the one before was deleted."""
        with self.lock:
            self.stream.close()
            self.stream = self._open()


def _open_log(name: str, flags: int) -> int:
    """A descriptor of a regular file: a link is not followed, and the reader of a pipe is not waited for."""
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
    """Show the package's messages; processes other than the first show errors only, and no warnings of libraries."""
    if rank > 0:
        logging.captureWarnings(True)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries without a network bury our one message
    package = logging.getLogger(PACKAGE)
    package.setLevel(logging.DEBUG)
    package.propagate = False
    if not logging.getLogger().handlers:  # else libraries (Lightning among them) make handlers for the console
        logging.getLogger().addHandler(logging.NullHandler())
    if not any(isinstance(handler, _ConsoleHandler) for handler in package.handlers):
        package.addHandler(_ConsoleHandler())
    for handler in package.handlers:
        if isinstance(handler, _ConsoleHandler):
            handler.setLevel(logging.INFO if rank == 0 else logging.ERROR)


def open_log_file(path: Path) -> LogFile:
    """Append everything, warnings of the libraries included, to `path`; pass the result to `close_log_file`.

    A link in place of the file is an OSError: whoever may write in a shared folder could lead it anywhere.
    """
    handler = LogFile(path, encoding="utf-8")
    handler.setFormatter(_FileFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    handler.filters_before = warnings.filters[:]  # type: ignore[attr-defined]
    logging.captureWarnings(True)
    warnings.simplefilter("default")
    for name in (PACKAGE, None):  # None: the root, which the libraries' loggers reach
        logging.getLogger(name).addHandler(handler)
    return handler


def close_log_file(handler: LogFile) -> None:
    for name in (PACKAGE, None):
        logging.getLogger(name).removeHandler(handler)
    logging.captureWarnings(False)
    warnings.filters[:] = handler.filters_before  # type: ignore[attr-defined]
    handler.close()
