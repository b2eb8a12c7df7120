"""The `model.dfine` section: the variant of D-FINE and the fields in which it differs from the published one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from rtdetr_tool.catalog import CLASS_LOSSES, DFINE_VARIANTS
from rtdetr_tool.families.base import QUERY_COUNT
from rtdetr_tool.families.denoising_fields import box_noise_scale_field, label_noise_ratio_field
from rtdetr_tool.spec.fields import INF, field


@dataclass(frozen=True)
class DfineSpec:
    """Architecture and loss of D-FINE. null = the variant's value."""

    variant: str = field(
        "s", "Published variant of D-FINE.", options=tuple(DFINE_VARIANTS), origin="ours", architecture=True
    )
    hidden_dim: int | None = field(
        None, "Channels of the encoder; a multiple of 8.", min=8, origin="ours", architecture=True, size="width"
    )
    dim_feedforward: int | None = field(
        None,
        "Width of the feed-forward network in the encoder.",
        min=1,
        origin="ours",
        architecture=True,
        size="breadth",
    )
    expansion: float | None = field(
        None,
        "Width of the stages of a fusion block, relative to half of hidden_dim.",
        above=0.0,
        max=INF,
        origin="ours",
        architecture=True,
        size="factor",
    )
    depth_mult: float | None = field(
        None,
        "Depth of the fusion blocks: round(3 * depth_mult) RepVGG blocks in each stage.",
        above=0.0,
        max=INF,
        origin="ours",
        architecture=True,
        size="depth",
    )
    dec_hidden_dim: int | None = field(
        None, "Channels of the decoder; a multiple of 8.", min=8, origin="ours", architecture=True, size="width"
    )
    dec_dim_feedforward: int | None = field(
        None,
        "Width of the feed-forward network in decoder layers.",
        min=1,
        origin="ours",
        architecture=True,
        size="breadth",
    )
    dec_layers: int | None = field(None, "Decoder layers.", min=1, origin="ours", architecture=True, size="depth")
    eval_idx: int = field(
        -1,
        "Decoder layer whose prediction is used in validation, inference and export; later layers only help in "
        "training. -1 = the last layer.",
        min=-1,
        max=INF,
        origin="ours",
        architecture=True,
        in_weights=False,
    )
    layer_scale: float = field(
        1.0,
        "Width of the decoder layers after eval_idx, relative to the others.",
        min=1.0,
        max=INF,
        origin="ours",
        architecture=True,
        size="factor",
    )
    num_points: list[int] | None = field(
        None,
        "Sampling points of a query and head on each level.",
        min=1,
        origin="ours",
        architecture=True,
        in_weights=False,
        size="total",
    )
    num_queries: int = field(
        300,
        "Object queries, which are the encoder tokens with the best scores.",
        min=1,
        max=INF,
        origin="ours",
        in_weights=False,
        recorded=QUERY_COUNT,
    )
    reg_max: int = field(
        32,
        "Bins of the distribution of a box edge, minus one; an even number.",
        min=4,
        origin="ours",
        architecture=True,
        size="breadth",
    )
    reg_scale: float | None = field(
        None,
        "How finely edges are refined: with a larger value, the bins are denser around the first box.",
        above=0.0,
        max=INF,
        origin="ours",
        architecture=True,
        in_weights=False,
        unlimited=True,
    )
    pe_order: str = field(
        "columns",
        "Order of the encoder's position embedding: columns = official D-FINE, rows = Hugging Face transformers. Both "
        "are the same for square inputs.",
        options=("columns", "rows"),
        origin="ours",
        architecture=True,
        in_weights=False,
    )
    freeze_norm: bool | None = field(
        None,
        "Freeze the batch norms of the backbone, both statistics and weights. null = the official recipe: variants l "
        "and x are frozen in runs that start from weights.",
        origin="ours",
        parameter_groups=True,
    )
    freeze_at: int | None = field(
        None,
        "Freeze the first part of the backbone: 0 = the stem, n = the stem and the first n stages, -1 = nothing. null "
        "= the official recipe, as for freeze_norm.",
        min=-1,
        max=4,
        origin="ours",
        parameter_groups=True,
    )
    dn_number: int = field(
        100,
        "Denoising: maximum number of positive queries per image in all groups, plus as many negative ones. 0 = no "
        "denoising.",
        min=0,
        max=INF,
        origin="ours",
    )
    label_noise_ratio: float = label_noise_ratio_field()
    box_noise_scale: float = box_noise_scale_field()
    class_loss: str = field(
        "vfl",
        "Class loss: vfl (varifocal) or mal (matchability-aware, DEIM, arXiv:2412.04234).",
        options=CLASS_LOSSES,
        origin="ours",
    )
    vfl_loss_coef: float = field(
        1.0, "Weight of the class loss (varifocal or mal).", min=0.0, max=INF, origin="ours", unlimited=True
    )
    alpha: float = field(0.75, "Varifocal loss: weight of negatives; mal has none.", above=0.0, origin="ours")
    gamma: float = field(
        2.0,
        "Focusing power of the class loss: of vfl on negatives, of mal on negatives and on the IoU of matched boxes "
        "(1.5 in DEIM).",
        above=0.0,
        origin="ours",
    )
    fgl_loss_coef: float = field(
        0.15,
        "Weight of the fine-grained localization loss, which supervises the distributions of box edges.",
        min=0.0,
        max=INF,
        origin="ours",
        unlimited=True,
    )
    ddf_loss_coef: float = field(
        1.5,
        "Weight of the decoupled distillation focal loss, with which earlier decoder layers follow the last one.",
        min=0.0,
        max=INF,
        origin="ours",
        unlimited=True,
    )


@dataclass(frozen=True, kw_only=True)
class ResolvedDfineSpec(DfineSpec):
    """A `DfineSpec` in which no field is null."""

    hidden_dim: int
    dim_feedforward: int
    expansion: float
    depth_mult: float
    dec_hidden_dim: int
    dec_dim_feedforward: int
    dec_layers: int
    num_points: list[int]
    reg_scale: float


def resolve_dfine(config: DfineSpec) -> ResolvedDfineSpec:
    """The section with every null replaced by the variant's value."""
    row = DFINE_VARIANTS[config.variant]
    given = {entry.name: getattr(config, entry.name) for entry in dataclasses.fields(config)}
    return ResolvedDfineSpec(
        **{name: _plain(getattr(row, name, None)) if value is None else value for name, value in given.items()}
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
