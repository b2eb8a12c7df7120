"""D-FINE as the rest of the package uses it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from rtdetr_tool.catalog import DFINE_VARIANTS
from rtdetr_tool.families.base import Family, SubField
from rtdetr_tool.families.dfine.checks import SIZE_MULTIPLE, dfine_problems
from rtdetr_tool.families.dfine.recipe import RECIPES
from rtdetr_tool.families.dfine.spec import DfineSpec, resolve_dfine

if TYPE_CHECKING:
    from rtdetr_tool.spec.model import ModelSpec

_DEFAULT = DfineSpec().variant


def section_of(model: ModelSpec) -> DfineSpec:
    return cast(DfineSpec, model.dfine)


SUB_FIELDS = MappingProxyType(
    {"decoder_layers": SubField("dfine.eval_idx", -1), "num_queries": SubField("dfine.num_queries")}
)


class DfineFamily(Family):
    """Peng et al. 2024, arXiv:2410.13842."""

    name = "dfine"
    title = "D-FINE"
    section = "dfine"
    section_type = DfineSpec
    class_heads = ("enc_score_head.", "dec_score_head.")
    class_embeddings = ("denoising_class_embed.",)
    orientation_fields = ("dfine.pe_order",)
    freezing = "dfine"
    recipe = RECIPES[_DEFAULT]
    recipe_source = "the official configurations for COCO"
    sub_fields = SUB_FIELDS

    def recipe_of(self, section: Mapping[str, Any]) -> Mapping[str, Any]:
        variant = section.get("variant")
        return RECIPES.get(variant if isinstance(variant, str) else _DEFAULT, self.recipe)

    def is_frozen_by_recipe(self, model: ModelSpec, start: str) -> bool:
        return DFINE_VARIANTS[section_of(model).variant].frozen

    def variant(self, model: ModelSpec) -> str:
        return section_of(model).variant

    def problems(self, model: ModelSpec, name: str) -> Iterator[str]:
        yield from dfine_problems(section_of(model), f"{name}.dfine")

    def size_multiple(self, model: ModelSpec) -> int:
        return SIZE_MULTIPLE

    def query_count(self, model: ModelSpec) -> int:
        return section_of(model).num_queries

    def whole_detector(self, model: ModelSpec) -> dict[str, int]:
        full = resolve_dfine(section_of(model))
        return {"decoder_layers": full.eval_idx % full.dec_layers + 1, "num_queries": full.num_queries}

    def fixed_reason(self, model: ModelSpec, choice: str) -> str:
        if choice == "decoder_layers" and section_of(model).layer_scale != 1.0:
            return "with model.dfine.layer_scale, layers after eval_idx have another width and cannot predict"
        return "" if choice in self.sub_fields else "its backbone has fixed strides, without patches and windows"

    def has_background(self, names: Sequence[str | None] | None) -> bool:
        """Only if the last class row has no class in the dataset."""
        return names is not None and names[-1] is None


FAMILY = DfineFamily()
