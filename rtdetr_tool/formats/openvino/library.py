"""OpenVINO in this process, and its errors, of which most lines are places in its source code."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from rtdetr_tool.messages import first_line

if TYPE_CHECKING:
    import openvino

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


@cache
def core() -> openvino.Core:
    """The only `openvino.Core` of this process.

    Each one sets the stack on which signal handlers run, and restores the one before when it is freed. If the first of
    two is freed first, that stack no longer exists, and the next signal, for example of an ended data worker or of
    Ctrl+C, is a segmentation fault.
    """
    import openvino

    return openvino.Core()


def reason_of(error: BaseException, limit: int = 300) -> str:
    """What an exception of OpenVINO says in one line, without places in its source code."""
    lines = [line.strip().removeprefix("-- ") for line in str(error).splitlines()]
    reason = " ".join(line for line in lines if line and not _PLACES.fullmatch(line))
    return reason[:limit] or first_line(error)
