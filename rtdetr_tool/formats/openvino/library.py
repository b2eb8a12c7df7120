"""OpenVINO's errors, of which most lines are places in its source code."""

from __future__ import annotations

import re

from rtdetr_tool.messages import first_line

_PLACES = re.compile(
    r"""
    Exception\ from\ .*:\d+:?
    | (While\ validating\ .*:\ )?Check\ '.*'\ failed\ at\ .*:\d+:?
    | While\ validating\ node\ .*
    | FrontEnd\ API\ failed\ with\ .*
    | Summary:
    """,
    re.VERBOSE,
)


def reason_of(error: BaseException, limit: int = 300) -> str:
    """What an exception of OpenVINO says in one line, without places in its source code."""
    lines = [line.strip().removeprefix("-- ") for line in str(error).splitlines()]
    reason = " ".join(line for line in lines if line and not _PLACES.fullmatch(line))
    return reason[:limit] or first_line(error)
