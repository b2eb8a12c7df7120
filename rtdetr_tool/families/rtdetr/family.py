"""RT-DETR as the rest of the program sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rtdetr_tool.families.base import Family
from rtdetr_tool.families.rtdetr.spec import SIZE_MULTIPLE, rtdetr_problems

if TYPE_CHECKING:
    from rtdetr_tool.spec.model import ModelSpec


class RtdetrFamily(Family):
    """Zhao et al. 2023, arXiv:2304.08069."""

    name = "rtdetr"
    title = "RT-DETR"
    query_field = "num_queries"

    def variant(self, model: ModelSpec) -> str:
        return model.backbone

    def problems(self, model: ModelSpec, name: str) -> Iterator[str]:
        yield from rtdetr_problems(model, name)

    def size_multiple(self, model: ModelSpec) -> int:
        return SIZE_MULTIPLE

    def query_count(self, model: ModelSpec) -> int:
        return model.num_queries

    def has_background(self, names: Sequence[str | None] | None) -> bool:
        """Only where the data leave the last class row without a class."""
        return names is not None and names[-1] is None


FAMILY = RtdetrFamily()
