"""The fields of `model` that RT-DETR reads. They are directly in `model`, as in TAO's specs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from rtdetr_tool.catalog import ACTIVATIONS, BACKBONES, CLASS_LOSSES, FOUNDATION_MODELS, LOSS_TYPES, TIMM
from rtdetr_tool.families.base import QUERY_COUNT
from rtdetr_tool.families.denoising_fields import box_noise_scale_field, label_noise_ratio_field
from rtdetr_tool.spec.fields import INF, Recorded, field

if TYPE_CHECKING:
    from rtdetr_tool.spec.model import ModelSpec


@dataclass(frozen=True)
class FrozenFmSpec:
    """A frozen foundation model in addition to the backbone."""

    enabled: bool = field(
        False,
        "Add the features of a frozen foundation model to encoder and decoder. Export then only supports batch size 1.",
        architecture=True,
    )
    backbone: str = field("radio_v2-l", "Foundation model.", options=tuple(FOUNDATION_MODELS), architecture=True)
    checkpoint: str | None = field(
        None,
        "Weights of the foundation model: a file of C-RADIOv2 as published, or of TAO. Our checkpoints do not include "
        "these weights, so the file is read whenever the detector is loaded.",
        path="read",
    )


@dataclass(frozen=True)
class RtdetrFields:
    """Architecture and loss of RT-DETR."""

    backbone: str = field(
        "resnet_50",
        "Name of the backbone; `timm/<name>` is any network of timm with feature maps of strides 4 to 32.",
        options=tuple(BACKBONES),
        prefix=TIMM,
        architecture=True,
    )
    freeze_norm: bool | None = field(
        None,
        "Freeze the batch norms of a ResNet, both statistics and weights. null = the reference recipe for the backbone"
        " and its initial weights (docs/training.md); the log lists what is frozen.",
        origin="ours",
        parameter_groups=True,
    )
    freeze_at: int | None = field(
        None,
        "Freeze the first part of a ResNet: 0 = the stem, n = the stem and the first n stages, -1 = nothing. null = "
        "the reference recipe, as for freeze_norm.",
        min=-1,
        max=4,
        origin="ours",
        parameter_groups=True,
    )
    num_queries: int = field(
        300,
        "Object queries, which are the encoder tokens with the best scores.",
        min=1,
        max=INF,
        automl=True,
        in_weights=False,
        recorded=QUERY_COUNT,
    )
    num_feature_levels: int = field(
        3,
        "Number of feature levels; must be the length of return_interm_indices.",
        min=1,
        max=4,
        architecture=True,
    )
    return_interm_indices: list[int] = field(
        [1, 2, 3],
        "Backbone stages to use, fine to coarse: 0, 1, 2, 3 have strides 4, 8, 16, 32.",
        min=0,
        max=3,
        architecture=True,
    )
    feat_strides: list[int] = field(
        [8, 16, 32],
        "Stride of each level; must match the selected stages.",
        min=1,
        unit="pixels",
        architecture=True,
    )
    feat_channels: list[int] = field(
        [256, 256, 256],
        "Channels of each level in the decoder; must be hidden_dim.",
        min=1,
        architecture=True,
        size="breadth",
    )
    use_encoder_idx: list[int] = field(
        [2],
        "Levels (positions in return_interm_indices) with a transformer encoder.",
        min=0,
        max=3,
        architecture=True,
        in_weights=False,
    )
    hidden_dim: int = field(
        256,
        "Number of channels of tokens and fused levels; a multiple of 4 and of nheads.",
        min=4,
        architecture=True,
        size="width",
    )
    nheads: int = field(8, "Attention heads of encoder and decoder.", min=1, architecture=True, in_weights=False)
    dropout_ratio: float = field(0.0, "Dropout in encoder and decoder layers.", min=0.0, max=1.0)
    enc_layers: int = field(
        1,
        "Transformer layers on each level of use_encoder_idx.",
        min=1,
        automl=True,
        architecture=True,
        size="depth",
    )
    dim_feedforward: int = field(
        1024,
        "Width of the feed-forward network in encoder and decoder layers.",
        min=1,
        architecture=True,
        size="breadth",
    )
    pe_temperature: int = field(
        10000,
        "Temperature of the encoder's sine-cosine position embedding.",
        min=1,
        max=INF,
        architecture=True,
        in_weights=False,
        unlimited=True,
    )
    pe_order: str = field(
        "columns",
        "Order of the encoder's position embedding: columns = official RT-DETR and TAO, rows = Hugging Face "
        "transformers. Both are the same for square inputs.",
        options=("columns", "rows"),
        origin="ours",
        architecture=True,
    )
    expansion: float = field(
        1.0,
        "Inner width of a fusion block, relative to hidden_dim.",
        min=0.0,
        max=INF,
        architecture=True,
        size="factor",
    )
    depth_mult: int = field(
        1,
        "Depth of the fusion blocks: 3 * depth_mult RepVGG blocks each.",
        min=1,
        max=INF,
        architecture=True,
        size="depth",
    )
    enc_act: str = field(
        "gelu",
        "Activation of the encoder's feed-forward network.",
        options=tuple(ACTIVATIONS),
        architecture=True,
        in_weights=False,
    )
    act: str = field(
        "silu",
        "Activation of the fusion convolutions.",
        options=tuple(ACTIVATIONS),
        architecture=True,
        in_weights=False,
    )
    dec_layers: int = field(6, "Decoder layers.", min=1, automl=True, architecture=True, size="depth")
    dec_hidden_dim: int | None = field(
        None,
        "Number of channels of the decoder, a multiple of nheads; null = hidden_dim. The official R101 uses 256 after "
        "an encoder with 384.",
        min=1,
        origin="ours",
        architecture=True,
        size="width",
    )
    dec_dim_feedforward: int | None = field(
        None,
        "Width of the feed-forward network in decoder layers; null = dim_feedforward. The official R101 uses 1024, and"
        " 2048 in the encoder.",
        min=1,
        origin="ours",
        architecture=True,
        size="breadth",
    )
    num_points: list[int] = field(
        [4],
        "Sampling points of a query per level: one number for all levels, or one per level (RT-DETRv2).",
        min=1,
        origin="ours",
        architecture=True,
        size="total",
    )
    cross_attn_method: str = field(
        "default",
        "Sampling of the levels: default = bilinear; discrete = whole pixels, which every runtime supports, with "
        "offsets that are not trained (RT-DETRv2; start from a model trained with default).",
        options=("default", "discrete"),
        origin="ours",
        architecture=True,
    )
    offset_scale: float = field(
        0.5,
        "Scale of the sampling offsets: an offset of as many units as the level has points equals this share of the "
        "side of the box.",
        above=0.0,
        origin="ours",
        architecture=True,
        unlimited=True,
    )
    drop_path: float | None = field(
        None,
        "Drop path rate of the backbone's last block, increasing linearly from the first block (FAN: the same in all "
        "blocks). null = the network's default: 0.3 for FAN, 0 for others.",
        min=0.0,
        max=0.99,
        origin="ours",
    )
    dn_number: int = field(
        100,
        "Denoising: maximum number of positive queries per image in all groups, plus as many negative ones. 0 = no "
        "denoising. For an image with more objects, each step denoises a random selection of dn_number.",
        min=0,
        max=INF,
    )
    label_noise_ratio: float = label_noise_ratio_field()
    box_noise_scale: float = box_noise_scale_field()
    eval_idx: int = field(
        -1,
        "Decoder layer whose prediction is used in validation, inference and export; later layers are skipped. -1 = "
        "the last layer.",
        min=-1,
        max=INF,
        in_weights=False,
        recorded=Recorded("which decoder layer predicts", weights="warned"),
    )
    vfl_loss_coef: float = field(1.0, "Weight of the class loss (varifocal or mal).", min=0.0, max=INF, unlimited=True)
    alpha: float = field(0.75, "Varifocal loss: weight of negatives; mal has none.", above=0.0)
    gamma: float = field(
        2.0,
        "Focusing power of the class loss: of vfl on negatives, of mal on negatives and on the IoU of matched boxes "
        "(1.5 in DEIM).",
        above=0.0,
    )
    loss_types: list[str] = field(
        list(LOSS_TYPES),
        "Losses to use: boxes, and vfl (varifocal) or mal (matchability-aware, DEIM, arXiv:2412.04234) for classes.",
        options=(*CLASS_LOSSES, "boxes"),
    )
    frozen_fm: FrozenFmSpec = field(FrozenFmSpec, "Frozen foundation model next to the backbone.")


def rtdetr_fields(model: ModelSpec) -> RtdetrFields:
    """`model` as a type checker knows it: all fields of `RtdetrFields` are fields of it."""
    return cast(RtdetrFields, model)
