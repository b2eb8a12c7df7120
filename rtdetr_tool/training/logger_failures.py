"""Keep failures of loggers from ending a run."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from pytorch_lightning.loggers import Logger

from rtdetr_tool.messages import first_line
from rtdetr_tool.redaction import mask_secrets

logger = logging.getLogger(__name__)


# The methods of a logger that Lightning calls during a run.
_METHODS = ("log_metrics", "log_hyperparams", "log_graph", "log_encoded_images", "save", "finalize",
            "after_save_checkpoint")  # fmt: skip


def reason_of(error: Exception) -> str:
    return mask_secrets(first_line(error, limit=1000))


@runtime_checkable
class TitledLogger(Protocol):
    """A logger with a name for messages that differs from its class name."""

    title: str


class FailureGuard:
    """Wraps the methods of a logger. After the first failure, which is logged, they do nothing."""

    def __init__(self, target: Logger) -> None:
        self.title = target.title if isinstance(target, TitledLogger) else type(target).__name__
        self.failed = False
        for name in _METHODS:
            if hasattr(target, name):
                setattr(target, name, self._guarded(getattr(target, name)))

    def _guarded(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def guarded(*arguments: Any, **options: Any) -> Any:
            if self.failed:
                return None
            try:
                return call(*arguments, **options)
            except Exception as error:
                self.failed = True
                logger.warning("%s failed, continuing without it: %s", self.title, reason_of(error))
                logger.debug("traceback", exc_info=error)
                return None

        return guarded


def guard_loggers(loggers: Sequence[Logger]) -> list[Logger]:
    """Wrap the loggers, so that none can end a run. A logger that cannot start is skipped with a warning."""
    guarded = []
    for target in loggers:
        try:
            _ = getattr(target, "experiment", None)  # connects and creates folders; otherwise done when the run begins
        except Exception as error:
            logger.warning("Skipping %s: %s", type(target).__name__, reason_of(error))
            continue
        if not isinstance(getattr(target, "failure_guard", None), FailureGuard):
            target.failure_guard = FailureGuard(target)  # type: ignore[attr-defined]  # kept on the logger itself
        guarded.append(target)
    return guarded


@contextmanager
def log_thread_failures() -> Iterator[None]:
    """Log tracebacks of the loggers' threads instead of printing them. The call that needs the thread fails as well."""
    original = threading.excepthook

    def log(failure: threading.ExceptHookArgs) -> None:
        name = failure.thread.name if failure.thread else "?"
        logger.debug("The thread %s failed", name, exc_info=failure.exc_value)

    threading.excepthook = log
    try:
        yield
    finally:
        threading.excepthook = original
