"""Load ExecuTorch's converter and runtime, whose wheels work with some versions of PyTorch only."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import torch

from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.onnx.export import quiet
from rtdetr_tool.formats.table import FORMATS
from rtdetr_tool.messages import first_line

TESTED = "executorch 1.5.1 was tested with torch 2.15.0"


def import_quietly(*names: str) -> list[ModuleType]:
    """Modules of ExecuTorch and torchao, without the warnings of their import.

    Raises:
        UserError: the installed versions do not work with this PyTorch.
    """
    try:
        with quiet(False):
            return [import_module(name) for name in names]
    except (ImportError, OSError, AttributeError, RuntimeError) as error:  # of libraries built for another PyTorch
        raise UserError(
            f"ExecuTorch {library_version()} cannot be loaded with torch {torch.__version__}: {first_line(error)}. "
            f"Install versions that belong together ({TESTED})"
        ) from error


def load_runtime(needed_by: object) -> Any:
    """ExecuTorch's runtime with as many threads as PyTorch; UserError if it is missing or does not work."""
    FORMATS["executorch"].to_run.require(str(needed_by))
    runtime, bindings = import_quietly("executorch.runtime", "executorch.extension.pybindings.portable_lib")
    with quiet(False):
        bindings._unsafe_reset_threadpool(torch.get_num_threads())
        return runtime.Runtime.get()


def library_version() -> str:
    with suppress(PackageNotFoundError):
        return version("executorch")
    return "(unknown version)"
