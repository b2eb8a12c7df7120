"""Check the output files that a spec names outside of the results folders.

A command must not overwrite its inputs, nor one output with another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from operator import attrgetter

from rtdetr_tool.spec.experiment import ExperimentSpec
from rtdetr_tool.spec.fields import is_blank
from rtdetr_tool.spec.queries import path_fields


def output_problems(spec: ExperimentSpec, command: str) -> Iterator[str]:
    """One line for each output file that is also another file of the command."""
    written = path_fields(command, "written")
    if not written:
        return
    known: dict[str, str] = {}
    for name in (*path_fields(command, "read"), *written):
        value = attrgetter(name)(spec)
        for item in value if isinstance(value, list) else [value]:
            if is_blank(item):
                continue
            path = os.path.realpath(item)
            if path in known and name in written:
                yield f"{name}: {item!r} is the same file as {known[path]}; expected a different file"
            known.setdefault(path, name)
