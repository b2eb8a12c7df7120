"""The `model.rfdetr` section with the values of its variant, and the image sizes that follow from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rtdetr_tool.catalog import CONVNEXT, DINOV2, ENCODERS, RFDETR_VARIANTS, STRIDES
from rtdetr_tool.families.base import SIZE_FIELDS
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec


@dataclass(frozen=True, kw_only=True)
class ResolvedRfdetrSpec(RfdetrSpec):
    """An `RfdetrSpec` in which no field is null."""

    encoder: str
    out_feature_indexes: list[int]
    projector_scale: list[str]
    hidden_dim: int
    dec_layers: int
    sa_nheads: int
    ca_nheads: int
    dec_n_points: int
    num_queries: int
    resolution: int
    patch_size: int
    num_windows: int
    positional_encoding_size: int
    segmentation_head: bool
    use_grouppose_keypoints: bool
    num_keypoints_per_class: list[int]
    dual_projector: bool
    dual_projector_kp_only: bool
    cls_loss_coef: float


def resolve_rfdetr(config: RfdetrSpec) -> ResolvedRfdetrSpec:
    """The section with every null replaced by the variant's value."""
    row = RFDETR_VARIANTS[config.variant]
    given = {entry.name: getattr(config, entry.name) for entry in dataclasses.fields(config)}
    published = row._asdict()
    filled = {name: _plain(published.get(name)) if value is None else value for name, value in given.items()}
    encoder = ENCODERS[filled["encoder"]]
    if encoder.kind == CONVNEXT and config.out_feature_indexes is None:
        filled["out_feature_indexes"] = list(CONVNEXT_STAGES)
    from_resolution = encoder.kind == DINOV2 and row.positional_encoding_size * row.patch_size == row.resolution
    if config.positional_encoding_size is None and config.resolution is not None and from_resolution:
        filled["positional_encoding_size"] = config.resolution // filled["patch_size"]
    return ResolvedRfdetrSpec(**filled)


CONVNEXT_STAGES = (2, 3, 4)  # whose output becomes a feature map

# Multi-scale training uses so many sizes below and above the resolution, in steps of a patch times the windows.
_SCALE_STEPS = (5, 5)
_FEWER_SCALE_STEPS = (3, 4)


def default_sizes(config: RfdetrSpec, multi_scales: Sequence[Any] | None = None) -> dict[str, list[Any]]:
    """Default sizes of `dataset.augmentation`: the resolution, and the sizes around it for multi-scale training.

    Training images are loaded at the largest of the sizes, because each batch is resized to one of them. A resolution
    that is not a multiple (an error of its own) counts as the next smaller one.

    Args:
        multi_scales: the user's; None where they are not given.
    """
    multiple = size_multiple(config)
    base = max(resolve_rfdetr(config).resolution // multiple, 1)
    below, above = _SCALE_STEPS if config.expanded_scales else _FEWER_SCALE_STEPS
    scales = [factor * multiple for factor in range(base - below, base + above + 1) if factor >= 2]
    square = [base * multiple] * 2
    sides = [size for size in (scales if multi_scales is None else multi_scales) if type(size) is int]
    largest = [max([*sides, base * multiple])] * 2 if sides else square
    return dict(zip(SIZE_FIELDS, (largest, list(square), scales), strict=True))


def size_multiple(config: RfdetrSpec) -> int:
    """Height and width of every image must be multiples of this."""
    full = resolve_rfdetr(config)
    return STRIDES[-1] if ENCODERS[full.encoder].kind == CONVNEXT else full.patch_size * full.num_windows


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
