"""Load coremltools without its messages about missing parts on Linux and untested versions of PyTorch."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from importlib import import_module
from types import ModuleType

from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.onnx.export import quiet
from rtdetr_tool.messages import first_line

# PyTorch's operators that coremltools lacks, and their equals that it has: `a & b` of boolean tensors, and an identity.
LACKING = {"__and__": "logical_and", "alias": "noop"}


def coremltools() -> ModuleType:
    """The package, whose log is off from now on; UserError if it cannot be loaded."""
    try:
        with silenced():
            package = import_module("coremltools")
        logging.getLogger(package.__name__).setLevel(logging.CRITICAL)
        return package
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        raise UserError(f"coremltools cannot be loaded: {first_line(error)}") from error


@contextmanager
def silenced(verbose: bool = False) -> Iterator[None]:
    """Hide warnings and progress bars of coremltools, unless verbose."""
    with quiet(verbose), ExitStack() as stack:
        if not verbose:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(redirect_stderr(nowhere))
        yield


def register_operators() -> None:
    """Register the operators of detectors that coremltools lacks in its table of PyTorch operators."""
    coremltools()
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY as registry

    for name, equal in LACKING.items():
        registry.set_func_by_name(registry.get_func(equal), name)
