"""The TensorRT libraries: differences, loading and messages.

All calls of this package exist in TensorRT 10 and 11 and in TensorRT-RTX 1 (according to the Python bindings of 10.0,
10.16, 11.0, 11.4 and 1.7); differences are in `LIBRARIES`. All support strongly typed networks, in which only the ONNX
file determines the precision: optional in TensorRT 10, mandatory since TensorRT 11.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

from rtdetr_tool.errors import RtdetrError, UserError

logger = logging.getLogger(__name__)

AFTERMATH = ("checkMacros.cpp", "API Usage Error (Parameter check failed")  # they follow the message with the reason
LEVELS = {"VERBOSE": logging.DEBUG, "INFO": logging.INFO, "WARNING": logging.WARNING}


@dataclass(frozen=True)
class Library:
    """One row of the differences between the libraries."""

    module: str
    title: str
    extra: str  # of this package
    oldest: int  # major version
    ahead_of_time: bool  # can build for GPUs by compute capability, without a GPU
    timing_cache: bool  # TensorRT-RTX measures nothing during builds; its timing cache has been a no-op since 1.2
    reports_validity: bool  # has `Runtime.get_engine_validity`, which explains why an engine does not load

    @property
    def pip_command(self) -> str:
        return f'pip install "rtdetr-tool[{self.extra}]"'

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None


LIBRARIES = {
    "tensorrt": Library(
        "tensorrt", "TensorRT", "tensorrt", 10, ahead_of_time=False, timing_cache=True, reports_validity=False
    ),
    "tensorrt_rtx": Library(
        "tensorrt_rtx", "TensorRT-RTX", "tensorrt-rtx", 1, ahead_of_time=True, timing_cache=False, reports_validity=True
    ),
}


@dataclass
class Messages:
    """Messages of a library during one task."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    verbose: bool = False

    def reasons(self) -> str:
        """The errors as an indented list, without duplicates and consequential errors."""
        texts = list(dict.fromkeys(_tidy(text) for text in self.errors))
        causes = [text for text in texts if not any(sign in text for sign in AFTERMATH)] or texts
        return "\n".join(f"  - {text}" for text in causes) or "  - no reason given"


class LoadedLibrary:
    """An imported library with its logger, of which a process may have only one.

    TensorRT keeps the first logger as long as any object created with it exists; therefore `listening` changes the
    destination of that logger: the log file (logger `tensorrt`), with `verbose` also the console.
    """

    def __init__(self, library: Library, module: ModuleType) -> None:
        self.library, self.module = library, module
        self.version: str = module.__version__
        self._messages = Messages()
        self.logger = _make_logger(module, self._take)

    @property
    def name(self) -> str:
        return f"{self.library.title} {self.version}"

    @contextmanager
    def listening(self, verbose: bool = False) -> Iterator[Messages]:
        before, self._messages = self._messages, Messages(verbose=verbose)
        try:
            yield self._messages
        finally:
            self._messages = before

    def _take(self, severity: str, text: str) -> None:
        messages, file = self._messages, logging.getLogger(self.library.module)
        level = LEVELS.get(severity, logging.ERROR)  # INTERNAL_ERROR too
        if severity == "VERBOSE" and not messages.verbose:
            return
        if level == logging.ERROR:
            messages.errors.append(text)
        elif level == logging.WARNING:
            messages.warnings.append(_tidy(text))
        (logger if messages.verbose else file).log(level, "%s: %s", self.library.title, text)


def _make_logger(module: ModuleType, take: Any) -> Any:
    base: Any = module.ILogger

    class Listener(base):  # type: ignore[misc]  # a class of a library without types
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            take(severity.name, text)

    return Listener()


def load_library(name: str) -> LoadedLibrary:
    """Import a library of `LIBRARIES`; always returns the same object, because of its logger.

    Raises:
        UserError: it is not installed, cannot be loaded, or is too old.
    """
    library = LIBRARIES[name]
    if not library.installed:
        raise UserError(f"{library.title} is not installed. Install it with: {library.pip_command}")
    return _load(library)


@cache
def _load(library: Library) -> LoadedLibrary:
    try:
        module = importlib.import_module(library.module)
    except (ImportError, OSError) as error:
        raise UserError(
            f"{library.title} is installed but cannot be loaded: {error}. Try: {library.pip_command} --force-reinstall"
        ) from error
    if int(module.__version__.split(".")[0]) < library.oldest:
        raise UserError(
            f"{library.title} {module.__version__} is too old; expected {library.oldest} or later. "
            f"Install it with: {library.pip_command} --upgrade"
        )
    logging.getLogger(library.module).setLevel(logging.DEBUG)  # filtered by its handlers, such as a run's log file
    return LoadedLibrary(library, module)


def made(thing: Any, what: str, messages: Messages) -> Any:
    """`thing`, unless it is None or False, which these libraries return instead of raising exceptions.

    Raises:
        RtdetrError: `thing` is None or False; contains the messages of the library.
    """
    if thing is None or thing is False:
        raise RtdetrError(f"{what} failed:\n{messages.reasons()}")
    return thing


def _tidy(text: str) -> str:
    """A message without source locations of the library."""
    text = re.sub(r"\s+In \w+ at /\S+?:\d+", "", text.strip())
    return " ".join(text.split())
