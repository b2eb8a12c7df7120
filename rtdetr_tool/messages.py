"""Text helpers for messages: cut long lists and values, take the first line of an error, make text encodable."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def first_of(items: Iterable[Any], limit: int = 5) -> str:
    """The first items separated by commas, and the number of the others: `a, b, c and 3 more`."""
    texts = [str(item) for item in items]
    shown = ", ".join(texts[:limit])
    return f"{shown} and {len(texts) - limit} more" if len(texts) > limit else shown


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first line of an error's message, cut to `limit` characters; its class where there is no message."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    lines = str(error).strip().splitlines()
    return lines[0][:limit] if lines else type(error).__name__


def shortened(value: object, limit: int = 60) -> str:
    """The `repr` of a value, cut to at most `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def encodable(value: object) -> str:
    """A value as stripped text that can be written as UTF-8; empty for None."""
    return "" if value is None else str(value).strip().encode("utf-8", "replace").decode("utf-8")
