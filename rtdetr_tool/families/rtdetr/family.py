"""RT-DETR as the rest of the program sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from rtdetr_tool.families.base import Family, NetworkSizes
from rtdetr_tool.families.rtdetr.spec import SIZE_MULTIPLE, rtdetr_problems

if TYPE_CHECKING:
    from rtdetr_tool.spec.model import ModelSpec


class RtdetrFamily(Family):
    """Zhao et al. 2023, arXiv:2304.08069."""

    name = "rtdetr"
    title = "RT-DETR"
    architecture: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "model": (
            "arch", "backbone", "num_feature_levels", "return_interm_indices", "feat_strides", "feat_channels",
            "use_encoder_idx", "hidden_dim", "nheads", "enc_layers", "dim_feedforward", "pe_temperature", "pe_order",
            "expansion", "depth_mult", "enc_act", "act", "dec_layers", "dec_hidden_dim", "dec_dim_feedforward",
            "num_points", "cross_attn_method", "offset_scale",
        ),
        "model.frozen_fm": ("enabled", "backbone"),
    }  # fmt: skip
    sizes = NetworkSizes(
        layers=("model.enc_layers", "model.dec_layers", "model.depth_mult"),
        widths=("model.hidden_dim", "model.dec_hidden_dim"),
        linear=("model.dim_feedforward", "model.dec_dim_feedforward", "model.feat_channels"),
    )

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
