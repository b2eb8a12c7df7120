"""Load MNN without what it prints to standard output.

Only its engine and the converter's C++ part are used. `MNN.tools`, and so the commands `mnnconvert` and `mnnquant`,
install a package with pip when they are imported and send usage statistics with it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.onnx.export import quiet
from rtdetr_tool.formats.table import FORMATS
from rtdetr_tool.messages import first_line


def load_engine(needed_by: object) -> tuple[ModuleType, ModuleType]:
    """`MNN.nn` and `MNN.expr`; UserError if MNN is missing or cannot be loaded."""
    FORMATS["mnn"].to_run.require(str(needed_by))
    try:
        with silenced():
            return import_module("MNN.nn"), import_module("MNN.expr")
    except (ImportError, OSError) as error:
        raise UserError(f"MNN {library_version()} cannot be loaded: {first_line(error)}") from error


@contextmanager
def silenced() -> Iterator[None]:
    """Hide what C++ code prints to standard output and standard error."""
    sys.stdout.flush()
    with quiet(False), open(os.devnull, "w", encoding="utf-8") as nowhere:
        kept = os.dup(1)
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def library_version() -> str:
    try:
        return version("MNN")
    except PackageNotFoundError:
        return "(unknown version)"
