"""The Python API: detectors as objects.

`Detector` and the classes of the model families, which `__init__.pyi` lists for type checkers. Their methods call the
same workflows as the commands. `keywords` maps the keywords of RF-DETR's package to fields, `opening` and `training`
build the spec, `runtime_cache` keeps the runtime until the weights change, `images` and `results` convert input and
output. May import everything except `commands` and `cli`.
"""

from __future__ import annotations

from typing import Any

from rtdetr_tool.api.detector import Detector
from rtdetr_tool.api.results import PlainDetections, PlainKeyPoints

__all__ = ["Detector", "PlainDetections", "PlainKeyPoints"]


def __getattr__(name: str) -> Any:
    from rtdetr_tool.api.variants import named_class

    model_class = None if name.startswith("_") else named_class(name)
    if model_class is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return model_class


def __dir__() -> list[str]:
    from rtdetr_tool.api.variants import class_names

    return [*__all__, *class_names()]
