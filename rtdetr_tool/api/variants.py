"""The classes of the Python API, which model families define in `families/<name>/api.py`."""

from __future__ import annotations

from typing import Protocol, cast

from rtdetr_tool.api.detector import Detector
from rtdetr_tool.families import Family, all_families
from rtdetr_tool.spec import ModelSpec


class ApiModule(Protocol):
    """The contract of `families/<name>/api.py`."""

    __all__: list[str]  # the public classes

    def class_of(self, model: ModelSpec) -> type[Detector]:
        """The class of a detector with this `model` section."""


def named_class(name: str) -> type[Detector] | None:
    """The public class with this name, or None."""
    module = next((module for module in map(_module, all_families()) if name in module.__all__), None)
    return None if module is None else cast("type[Detector]", getattr(module, name))


def class_names() -> list[str]:
    """Names of the public classes of all families."""
    return [name for family in all_families() for name in _module(family).__all__]


def class_of(model: ModelSpec) -> type[Detector]:
    """The class of a detector with this `model` section."""
    return _module(model.family).class_of(model)


def _module(family: Family) -> ApiModule:
    return cast(ApiModule, family.module("api"))
