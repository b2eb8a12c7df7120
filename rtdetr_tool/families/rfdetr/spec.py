"""The `model.rfdetr` section: which RF-DETR, and what differs from the published one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rtdetr_tool.catalog import DINOV2, PROJECTOR_SCALES, RFDETR_VARIANTS
from rtdetr_tool.families.base import QUERY_COUNT, SIZE_FIELDS
from rtdetr_tool.spec.fields import INF, field


@dataclass(frozen=True)
class RfdetrSpec:
    """Architecture and loss of RF-DETR. What is null is the variant's."""

    variant: str = field(
        "nano",
        "Which published RF-DETR; large_2025 is the Large of 2025, which Roboflow has replaced.",
        options=tuple(RFDETR_VARIANTS),
        origin="ours",
        architecture=True,
    )
    encoder: str | None = field(
        None,
        "The ViT: DINOv2 of this size, with attention inside windows.",
        options=tuple(DINOV2),
        origin="ours",
        architecture=True,
    )
    out_feature_indexes: list[int] | None = field(
        None,
        "Numbers of ViT blocks after which the tokens become a feature map, ascending; they decide which blocks attend "
        "to the whole image, too.",
        min=0,
        max=12,
        origin="ours",
        architecture=True,
    )
    projector_scale: list[str] | None = field(
        None,
        "Levels that the projector makes, ascending: P3 has twice the size of the ViT's map, P4 the same, P5 half.",
        options=tuple(PROJECTOR_SCALES),
        origin="ours",
        architecture=True,
    )
    hidden_dim: int | None = field(
        None,
        "Width of levels and queries; a multiple of 4, sa_nheads and ca_nheads.",
        min=4,
        origin="ours",
        architecture=True,
        size="width",
    )
    dec_layers: int | None = field(None, "Decoder layers.", min=1, origin="ours", architecture=True, size="depth")
    sa_nheads: int | None = field(
        None, "Heads of the attention among queries.", min=1, origin="ours", architecture=True
    )
    ca_nheads: int | None = field(
        None, "Heads of the deformable attention to the levels.", min=1, origin="ours", architecture=True
    )
    dec_n_points: int | None = field(
        None, "Points that a query samples per head and level.", min=1, origin="ours", architecture=True
    )
    dim_feedforward: int = field(
        2048,
        "Width of the feed-forward network in decoder layers.",
        min=1,
        origin="ours",
        size="breadth",
    )
    dropout: float = field(0.0, "Dropout in decoder layers.", min=0.0, max=1.0, origin="ours")
    num_queries: int | None = field(
        None, "Object queries (of one group).", min=1, origin="ours", size="breadth", recorded=QUERY_COUNT
    )
    group_detr: int = field(
        13,
        "Groups of queries in training: each matches every object once. Outside training only the first is used.",
        min=1,
        origin="ours",
        size="breadth",
    )
    bbox_reparam: bool = field(
        True,
        "Predict boxes relative to the size of their reference; false = as logits.",
        origin="ours",
        architecture=True,
    )
    lite_refpoint_refine: bool = field(
        True,
        "All decoder layers look from the first reference; false = each from the box before.",
        origin="ours",
        architecture=True,
    )
    resolution: int | None = field(
        None,
        "Side of the images that the model is made for, a multiple of patch_size * num_windows: it sets the number of "
        "position embeddings, and the sizes of dataset.augmentation, where those are not given. Other sizes "
        "interpolate the embeddings.",
        min=1,
        unit="pixels",
        origin="ours",
    )
    patch_size: int | None = field(
        None, "Side of a patch of the ViT.", min=1, unit="pixels", origin="ours", architecture=True
    )
    num_windows: int | None = field(
        None,
        "Windows per side of the image, inside which most ViT blocks attend.",
        min=1,
        origin="ours",
        architecture=True,
    )
    positional_encoding_size: int | None = field(
        None,
        "Side of the square of learned position embeddings, in patches; null = resolution / patch_size when the "
        "resolution is given, else the variant's.",
        min=1,
        origin="ours",
    )
    expanded_scales: bool = field(
        True,
        "Multi-scale training with 5 sizes below and above the resolution; false = 3 below and 4 above. Only where "
        "dataset.augmentation.multi_scales is not given.",
        origin="ours",
    )
    drop_path: float = field(
        0.0,
        "Share of windows for which the last ViT block is skipped in training; from 0 in the first it rises linearly.",
        min=0.0,
        max=0.99,
        origin="ours",
    )
    segmentation_head: bool | None = field(
        None,
        "Predict a mask for each object, too; the annotations must have masks. The seg_ variants do.",
        origin="ours",
        architecture=True,
    )
    mask_downsample_ratio: int = field(
        4,
        "Side of the images over that of the predicted masks.",
        min=1,
        unit="pixels",
        origin="ours",
        architecture=True,
    )
    accept_platform_model_license: bool = field(
        False,
        "You have read Roboflow's Platform Model License (PML-1.0) and accept it: needed to use its weights of xlarge "
        "and 2xlarge.",
        origin="ours",
    )
    cls_loss_coef: float = field(
        1.0,
        "Weight of the IoU-aware class loss.",
        min=0.0,
        max=INF,
        origin="ours",
        unlimited=True,
    )
    mask_ce_loss_coef: float = field(
        5.0,
        "Weight of the masks' cross-entropy, in the loss and in the matching.",
        min=0.0,
        max=INF,
        origin="ours",
        unlimited=True,
    )
    mask_dice_loss_coef: float = field(
        5.0,
        "Weight of the masks' Dice loss, in the loss and in the matching.",
        min=0.0,
        max=INF,
        origin="ours",
        unlimited=True,
    )
    mask_point_sample_ratio: int = field(
        16, "Pixels of a predicted mask for each point at which it is compared with its object's.", min=1, origin="ours"
    )
    focal_alpha: float = field(
        0.25,
        "Class loss: the target of a matched class is p^focal_alpha * IoU^(1 - focal_alpha); weight of positives in "
        "the matching.",
        min=0.0,
        max=1.0,
        origin="ours",
    )


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


def resolve_rfdetr(own: RfdetrSpec) -> ResolvedRfdetrSpec:
    """The same with every null filled in from the variant."""
    row = RFDETR_VARIANTS[own.variant]
    given = {entry.name: getattr(own, entry.name) for entry in dataclasses.fields(own)}
    filled = {name: _plain(getattr(row, name, None)) if value is None else value for name, value in given.items()}
    from_resolution = row.positional_encoding_size * row.patch_size == row.resolution
    if own.positional_encoding_size is None and own.resolution is not None and from_resolution:
        filled["positional_encoding_size"] = own.resolution // filled["patch_size"]
    return ResolvedRfdetrSpec(**filled)


# Multi-scale training uses so many sizes below and above the resolution, in steps of a patch times the windows.
_SCALE_STEPS = (5, 5)
_FEWER_SCALE_STEPS = (3, 4)


def default_sizes(own: RfdetrSpec, multi_scales: Sequence[Any] | None = None) -> dict[str, list[Any]]:
    """Default sizes of `dataset.augmentation`: the resolution, and the sizes around it for multi-scale training.

    Training images are loaded at the largest of the sizes, because each batch is resized to one of them. A resolution
    that is not a multiple (an error of its own) counts as the next smaller one.

    Args:
        multi_scales: the user's; None where they are not given.
    """
    multiple = size_multiple(own)
    base = max(resolve_rfdetr(own).resolution // multiple, 1)
    below, above = _SCALE_STEPS if own.expanded_scales else _FEWER_SCALE_STEPS
    scales = [factor * multiple for factor in range(base - below, base + above + 1) if factor >= 2]
    square = [base * multiple] * 2
    sides = [size for size in (scales if multi_scales is None else multi_scales) if type(size) is int]
    largest = [max([*sides, base * multiple])] * 2 if sides else square
    return dict(zip(SIZE_FIELDS, (largest, list(square), scales), strict=True))


def size_multiple(own: RfdetrSpec) -> int:
    """Height and width of every image must be multiples of this."""
    full = resolve_rfdetr(own)
    return full.patch_size * full.num_windows


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
