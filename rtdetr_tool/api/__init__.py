"""The package in Python: detectors as objects.

`Detector` and the classes of the model families, which `__init__.pyi` lists for type checkers.
"""

from __future__ import annotations

from typing import Any

from rtdetr_tool.api.detector import Detector
from rtdetr_tool.api.results import PlainDetections

__all__ = ["Detector", "PlainDetections"]


def __getattr__(name: str) -> Any:
    from rtdetr_tool.api.variants import named_class

    found = None if name.startswith("_") else named_class(name)
    if found is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found


def __dir__() -> list[str]:
    from rtdetr_tool.api.variants import class_names

    return [*__all__, *class_names()]
