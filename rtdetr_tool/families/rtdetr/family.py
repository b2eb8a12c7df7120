"""The interface of RT-DETR to the rest of the program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from rtdetr_tool.catalog import BACKBONES, FREEZING
from rtdetr_tool.families.base import Family, OutsideWeights, SubField
from rtdetr_tool.families.rtdetr.checks import SIZE_MULTIPLE, rtdetr_problems
from rtdetr_tool.families.rtdetr.spec import RtdetrFields, rtdetr_fields

if TYPE_CHECKING:
    from rtdetr_tool.spec.model import ModelSpec


# Each decoder layer has heads of its own, and queries are the encoder tokens with the best scores.
SUB_FIELDS = MappingProxyType({"decoder_layers": SubField("eval_idx", -1), "num_queries": SubField("num_queries")})


class RtdetrFamily(Family):
    """Zhao et al. 2023, arXiv:2304.08069."""

    name = "rtdetr"
    title = "RT-DETR"
    fields_type = RtdetrFields
    class_heads = ("enc_score_head.", "dec_score_head.")
    class_embeddings = ("denoising_class_embed.",)
    freezing = ""
    orientation_fields = ("pe_order",)
    recipe_source = "NVIDIA TAO's defaults"
    sub_fields = SUB_FIELDS

    def variant(self, model: ModelSpec) -> str:
        return rtdetr_fields(model).backbone

    def problems(self, model: ModelSpec, name: str) -> Iterator[str]:
        yield from rtdetr_problems(rtdetr_fields(model), name)
        if rtdetr_fields(model).frozen_fm.enabled and model.num_channels != 3:
            yield (
                f"{name}.frozen_fm.enabled is not supported with {name}.num_channels={model.num_channels}, because "
                "RADIO was trained on RGB; use 3 channels, or set it to false"
            )

    def size_multiple(self, model: ModelSpec) -> int:
        return SIZE_MULTIPLE

    def query_count(self, model: ModelSpec) -> int:
        return rtdetr_fields(model).num_queries

    def whole_detector(self, model: ModelSpec) -> dict[str, int]:
        fields = rtdetr_fields(model)
        return {"decoder_layers": fields.eval_idx % fields.dec_layers + 1, "num_queries": fields.num_queries}

    def fixed_reason(self, model: ModelSpec, choice: str) -> str:
        return "" if choice in self.sub_fields else "its backbone has fixed strides, without patches and windows"

    def outside_weights(self, model: ModelSpec) -> OutsideWeights | None:
        frozen = rtdetr_fields(model).frozen_fm
        if not frozen.enabled:
            return None
        return OutsideWeights("frozen_fm.checkpoint", frozen.checkpoint, "the frozen foundation model", frozen.backbone)

    def published_license(self, model: ModelSpec) -> str | None:
        """That of the backbone's weights."""
        row = BACKBONES.get(rtdetr_fields(model).backbone)
        return None if row is None else row.license

    def is_frozen_by_recipe(self, model: ModelSpec, start: str) -> bool:
        return rtdetr_fields(model).backbone in FREEZING[start]

    def has_background(self, names: Sequence[str | None] | None) -> bool:
        """Only if the last class row has no class in the dataset."""
        return names is not None and names[-1] is None


FAMILY = RtdetrFamily()
