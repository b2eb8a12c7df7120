"""The interface of Toy-DETR to the rest of the program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rtdetr_tool.families.base import Family
from toy_family.spec import ToySpec, toy_problems


class ToyFamily(Family):
    """After Carion et al. 2020, arXiv:2005.12872, with one map and a decoder only."""

    name = "toy"
    title = "Toy-DETR"
    section = "toy"
    section_type = ToySpec
    class_heads = ("decoder.class_embed.",)

    def variant(self, model: Any) -> str:
        return model.toy.variant

    def problems(self, model: Any, name: str) -> Iterator[str]:
        yield from toy_problems(model.toy, f"{name}.toy")

    def size_multiple(self, model: Any) -> int:
        return 32

    def query_count(self, model: Any) -> int:
        return model.toy.num_queries

    def has_background(self, names: Sequence[str | None] | None) -> bool:
        return False


FAMILY = ToyFamily()
