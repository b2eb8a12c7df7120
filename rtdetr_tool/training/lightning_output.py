"""Keep Lightning's own messages off the terminal."""

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
    """Inside the block, send Lightning's messages only to handlers of the root logger, and ignore its warnings.

    Imported without logging set up, as in a notebook, Lightning writes hints and advertisements to stderr. A command
    has set up its log file before, which receives both, because existing warning filters take precedence.
    """
    saved = []
    for logger in map(logging.getLogger, _LOGGERS):
        saved.append((logger, logger.handlers[:], logger.propagate))
        logger.handlers[:] = [handler for handler in logger.handlers if not _writes_to_terminal(handler)]
        logger.propagate = True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=_MODULES, append=True)
            yield
    finally:
        for logger, handlers, propagate in saved:
            logger.handlers[:], logger.propagate = handlers, propagate


def _writes_to_terminal(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and handler.stream in (
        sys.stderr, sys.stdout, sys.__stderr__, sys.__stdout__
    )  # fmt: skip
