"""The interface of RF-DETR to the rest of the program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from rtdetr_tool.catalog import BOXES, DINOV2, ENCODERS, KEYPOINTS, MASKS, RFDETR_VARIANTS
from rtdetr_tool.families.base import Family, KeypointLayout, SubField
from rtdetr_tool.families.rfdetr.checks import rfdetr_problems
from rtdetr_tool.families.rfdetr.keywords import MODEL_TABLE, TRAIN_DEPRECATED, TRAIN_TABLE
from rtdetr_tool.families.rfdetr.recipe import RECIPE
from rtdetr_tool.families.rfdetr.resolved import default_sizes, resolve_rfdetr, size_multiple
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec

if TYPE_CHECKING:
    from rtdetr_tool.spec.model import ModelSpec


def section_of(model: ModelSpec) -> RfdetrSpec:
    return cast(RfdetrSpec, model.rfdetr)


SUB_FIELDS = MappingProxyType(
    {
        "decoder_layers": SubField("rfdetr.dec_layers"),
        "num_queries": SubField("rfdetr.num_queries"),
        "num_windows": SubField("rfdetr.num_windows"),
        "patch_size": SubField("rfdetr.patch_size"),
    }
)


class RfdetrFamily(Family):
    """Robinson et al. 2025, arXiv:2511.09554."""

    name = "rfdetr"
    title = "RF-DETR"
    recipe = RECIPE
    train_keywords = TRAIN_TABLE
    deprecated_keywords = TRAIN_DEPRECATED
    model_keywords = MODEL_TABLE
    recipe_source = "the defaults of Roboflow's package"
    section = "rfdetr"
    section_type = RfdetrSpec
    class_heads = ("decoder.class_embed.", "enc_out_class_embed.")
    image_sides = ("rfdetr.resolution",)
    sub_fields = SUB_FIELDS
    proposals = MappingProxyType({KEYPOINTS: {"model.rfdetr.variant": "keypoint_preview"}})

    def variant(self, model: ModelSpec) -> str:
        return section_of(model).variant

    def problems(self, model: ModelSpec, name: str) -> Iterator[str]:
        yield from rfdetr_problems(section_of(model), f"{name}.rfdetr")

    def problems_unused(self, model: ModelSpec, name: str) -> Iterator[str]:
        for field in ("segmentation_head", "use_grouppose_keypoints"):
            if getattr(section_of(model), field):
                yield (
                    f"{name}.rfdetr.{field}: true is invalid with {name}.arch {model.arch}, which predicts boxes only; "
                    f"expected {name}.arch rfdetr"
                )

    def size_multiple(self, model: ModelSpec) -> int:
        return size_multiple(section_of(model))

    def default_sizes(self, section: Any, multi_scales: Sequence[Any] | None = None) -> dict[str, list[Any]]:
        return default_sizes(section, multi_scales)

    def query_count(self, model: ModelSpec) -> int:
        return resolve_rfdetr(section_of(model)).num_queries

    def whole_detector(self, model: ModelSpec) -> dict[str, int]:
        full = resolve_rfdetr(section_of(model))
        return {
            "decoder_layers": full.dec_layers,
            "num_queries": full.num_queries,
            "num_windows": full.num_windows,
            "patch_size": full.patch_size,
        }

    def sub_values(self, model: ModelSpec, numbers: Mapping[str, int], size: tuple[int, int]) -> dict[str, Any]:
        """The same position embeddings, which are interpolated to the number of patches."""
        full, fixed = resolve_rfdetr(section_of(model)), {"rfdetr.resolution": size[0]}
        if ENCODERS[full.encoder].kind == DINOV2:
            fixed["rfdetr.positional_encoding_size"] = full.positional_encoding_size
        return {**super().sub_values(model, numbers, size), **fixed}

    def fixed_reason(self, model: ModelSpec, choice: str) -> str:
        encoder = ENCODERS[resolve_rfdetr(section_of(model)).encoder]
        return f"its encoder {encoder.name} has no {choice}" if choice in encoder.unused_fields else ""

    def class_rows(self, classes: int) -> int:
        """One more row at the end that belongs to no class, as in Roboflow's models and expected by its package."""
        return classes + 1

    def has_background(self, names: Sequence[str | None] | None) -> bool:
        """The row after the classes, or index 0 if class indices are COCO's category ids."""
        return names is None or None in names

    def predicts(self, model: ModelSpec) -> str:
        full = resolve_rfdetr(section_of(model))
        if full.segmentation_head:
            return MASKS
        return KEYPOINTS if full.use_grouppose_keypoints else BOXES

    def published_license(self, model: ModelSpec) -> str | None:
        """That of the encoder's weights if it is not the published one of the variant."""
        row = RFDETR_VARIANTS.get(self.variant(model))
        encoder = section_of(model).encoder
        if row is None or encoder in (None, row.encoder):
            return None if row is None else row.license
        return ENCODERS[encoder].license

    def boxes_only(self, kind: str) -> str:
        if kind == MASKS:
            return "a model.rfdetr.variant without seg_, model.rfdetr.segmentation_head: false"
        return "a model.rfdetr.variant without keypoint_, model.rfdetr.use_grouppose_keypoints: false"

    def keypoints(self, model: ModelSpec) -> KeypointLayout:
        full = resolve_rfdetr(section_of(model))
        return KeypointLayout(tuple(full.num_keypoints_per_class), full.postprocess_trace_alpha)

    def has_keypoints_of_data(self, model: ModelSpec) -> bool:
        return section_of(model).num_keypoints_per_class is None

    def with_keypoint_counts(self, model: ModelSpec, counts: Sequence[int]) -> ModelSpec:
        changes: Any = {"rfdetr": replace(section_of(model), num_keypoints_per_class=list(counts))}
        return replace(model, **changes)


FAMILY = RfdetrFamily()
