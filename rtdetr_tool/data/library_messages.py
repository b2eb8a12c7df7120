"""Redirect messages of image libraries from the terminal to the log."""

from __future__ import annotations

import ctypes
import logging
import sys
import warnings
from functools import cache
from typing import Any

logger = logging.getLogger(__name__)

_LONGEST = 500  # bytes of a message
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)  # module, format, its va_list
_SETTERS = ("TIFFSetWarningHandler", "TIFFSetErrorHandler")


@cache
def keep_off_the_terminal() -> None:
    """Log what libtiff would write to stderr, and ignore Pillow's warnings unless a filter asks for them.

    Unreadable images still raise an exception. Existing warning filters, of the user or for a log file, take
    precedence.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.", append=True)
    handler = _LOG_HANDLER if sys.platform == "linux" else None  # elsewhere a va_list may not be a pointer
    for setter in _libtiff_setters():
        setter(handler)


def _libtiff_setters() -> list[Any]:
    """Functions of the libtiff that Pillow is linked with; empty if its symbols are not visible."""
    from PIL import _imaging

    try:
        library = ctypes.CDLL(_imaging.__file__)
        setters = [getattr(library, name) for name in _SETTERS]
    except (AttributeError, OSError, TypeError):
        return []
    for setter in setters:
        setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
    return setters


def _log(module: bytes | None, form: bytes | None, values: int | None) -> None:
    try:
        text = ctypes.create_string_buffer(_LONGEST)
        _vsnprintf()(text, _LONGEST, form, values)
        logger.debug("libtiff: %s", text.value.decode("utf-8", "replace"))
    except Exception:  # the caller is C code, so no exception may escape
        pass


_LOG_HANDLER = _HANDLER(_log)


@cache
def _vsnprintf() -> Any:
    function = ctypes.CDLL(None).vsnprintf
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p]
    return function
