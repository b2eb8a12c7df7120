"""Keeps Lightning's own messages off the terminal."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric")
_MODULES = r"(pytorch_lightning|lightning_fabric|lightning)\."


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Send Lightning's messages to the handlers of the root logger only, and ignore its warnings, inside the block.

    When imported without any logging set up, as from a notebook, Lightning writes hints and advertisements to stderr. A
    command has set up its log file before, which gets both: filters of warnings that are set already come first.
    """
    kept = []
    for logger in map(logging.getLogger, _LOGGERS):
        kept.append((logger, logger.handlers[:], logger.propagate))
        logger.handlers[:] = [handler for handler in logger.handlers if not _on_terminal(handler)]
        logger.propagate = True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=_MODULES, append=True)
            yield
    finally:
        for logger, handlers, propagate in kept:
            logger.handlers[:], logger.propagate = handlers, propagate


def _on_terminal(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and handler.stream in (
        sys.stderr, sys.stdout, sys.__stderr__, sys.__stdout__
    )  # fmt: skip
