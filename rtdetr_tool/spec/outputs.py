"""The files that a spec names to be written, beside what lies in the results folders.

A command must not write over what it reads, nor one of its files over another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from operator import attrgetter

from rtdetr_tool.spec.experiment import ExperimentSpec
from rtdetr_tool.spec.fields import is_blank

# Command -> fields that name files to write, and files that it reads.
WRITTEN = {
    "export": ("export.onnx_file",),
    "gen_trt_engine": (
        "gen_trt_engine.trt_engine",
        "gen_trt_engine.timing_cache",
        "gen_trt_engine.tensorrt.calibration.cal_cache_file",
    ),
}
READ = {"export": ("export.checkpoint",), "gen_trt_engine": ("gen_trt_engine.onnx_file",)}


def output_problems(spec: ExperimentSpec, command: str) -> Iterator[str]:
    """One line for each file to write that something else of the command lies in already."""
    known: dict[str, str] = {}
    for name in (*READ.get(command, ()), *WRITTEN.get(command, ())):
        value = attrgetter(name)(spec)
        if is_blank(value):
            continue
        path = os.path.realpath(value)
        if path in known:
            yield f"{name}: {value!r} is the same file as {known[path]}; allowed: a file of its own"
        known.setdefault(path, name)
