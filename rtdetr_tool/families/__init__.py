"""Model families: one package each, and the table of their names.

A package `families/<name>` has the same modules for every family:

    family.py    `FAMILY`, the interface to the rest of the program (`base.Family`); no torch
    spec.py      the family's fields of `model`, in a section or directly in it; no torch
    build.py     `build_detector` and `build_criterion` (`base.BuildModule`)
    model/       the network
    weights.py   reading the family's weights from files of other programs (`WeightsModule`)
    api.py       the classes of the Python API (`base.ApiModule`)

A family may have more modules, such as `checks` (what fields require of each other). `family`, `spec`, `checks` and
`__init__` belong to the layer of `spec`, `api` to that of `api`. Everything outside of these packages goes
through this table, and lower layers reach `build`, `weights` and `api` by `Family.module`.
`spec.model.family` is the family of a spec.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import cast

from rtdetr_tool.families.base import Family

__all__ = ["DEFAULT_FAMILY", "FAMILIES", "Family", "all_families", "family_named", "family_of"]

# `model.arch` -> package.
FAMILIES: dict[str, str] = {
    "rtdetr": "rtdetr_tool.families.rtdetr",
    "rfdetr": "rtdetr_tool.families.rfdetr",
    "dfine": "rtdetr_tool.families.dfine",
}
DEFAULT_FAMILY = "rtdetr"  # of specs and files without `model.arch`


@cache
def family_named(name: str) -> Family:
    """The family that `model.arch` calls `name`; KeyError for an unknown one."""
    return cast(Family, import_module(f"{FAMILIES[name]}.family").FAMILY)


def family_of(arch: object) -> Family:
    """The family of an unchecked `model.arch`; the default family if it is unknown."""
    return family_named(arch if isinstance(arch, str) and arch in FAMILIES else DEFAULT_FAMILY)


def all_families() -> tuple[Family, ...]:
    return tuple(map(family_named, FAMILIES))
