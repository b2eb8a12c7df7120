"""The `model` section: architecture, matcher and loss weights."""

from __future__ import annotations

from dataclasses import dataclass

from rtdetr_tool.catalog import BACKBONES, FOUNDATION_MODELS, TIMM
from rtdetr_tool.families import DEFAULT_FAMILY, FAMILIES, family_named
from rtdetr_tool.families.base import Family
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec
from rtdetr_tool.spec.fields import INF, field

ENCODER_ACTIVATIONS = ("relu", "gelu", "silu", "prelu", "selu", "leaky_relu")


@dataclass(frozen=True)
class FrozenFmSpec:
    """A frozen foundation model beside the backbone."""

    enabled: bool = field(
        False,
        "Add the features of a frozen foundation model to encoder and decoder. Export is then for a batch of 1 only.",
        architecture=True,
    )
    backbone: str = field("radio_v2-l", "Which foundation model.", options=tuple(FOUNDATION_MODELS), architecture=True)
    checkpoint: str | None = field(
        None,
        "Weights file of the foundation model: C-RADIOv2 as published, or as TAO keeps it. Our checkpoints do not hold "
        "these weights: the file is read again whenever the detector is opened.",
        path="read",
    )


@dataclass(frozen=True)
class ModelSpec:
    """What the detector is made of and how its predictions are matched and scored."""

    pretrained_backbone_path: str | None = field(
        None,
        "Weights for the backbone: a file, or `timm` (or `timm/<tag>`) for the weights timm publishes. Not read when "
        "train.pretrained_model_path is set.",
        path="read",
    )
    backbone: str = field(
        "resnet_50",
        "Name of the backbone; `timm/<name>` is any network of timm with feature maps of strides 4 to 32.",
        options=tuple(BACKBONES),
        prefix=TIMM,
        family="rtdetr",
        architecture=True,
    )
    train_backbone: bool = field(
        True, "Train the backbone; false fixes its weights and statistics.", parameter_groups=True
    )
    freeze_norm: bool | None = field(
        None,
        "Do not train the batch norms of a ResNet: statistics and weights stay as loaded. null = the reference recipe "
        "of the backbone and its initial weights (docs/training.md); the log says what is frozen.",
        origin="ours",
        family="rtdetr",
        parameter_groups=True,
    )
    freeze_at: int | None = field(
        None,
        "Do not train the first part of a ResNet: 0 = the stem, n = the stem and the first n stages, -1 = train all of "
        "it. null = the reference recipe, as for freeze_norm.",
        min=-1,
        max=4,
        origin="ours",
        family="rtdetr",
        parameter_groups=True,
    )
    load_teacher_enc_dec: bool = field(
        False, "distill: start encoder and decoder from those tensors of the teacher that have the same shape."
    )
    num_queries: int = field(
        300,
        "Object queries: the best encoder tokens that go on to the decoder.",
        min=1,
        max=INF,
        automl=True,
        family="rtdetr",
        in_weights=False,
    )
    num_select: int = field(
        300,
        "Detections kept per image: the best (query, class) pairs. At most num_queries * num_classes exist.",
        min=1,
        automl=True,
    )
    num_feature_levels: int = field(
        3,
        "Number of feature levels; as many as return_interm_indices has.",
        min=1,
        max=4,
        family="rtdetr",
        architecture=True,
    )
    return_interm_indices: list[int] = field(
        [1, 2, 3],
        "Backbone stages to use, fine to coarse: 0, 1, 2, 3 have strides 4, 8, 16, 32.",
        min=0,
        max=3,
        family="rtdetr",
        architecture=True,
    )
    feat_strides: list[int] = field(
        [8, 16, 32],
        "Stride of each level; must be those of the chosen stages.",
        min=1,
        unit="pixels",
        family="rtdetr",
        architecture=True,
    )
    feat_channels: list[int] = field(
        [256, 256, 256],
        "Channels of each level at the decoder; equal to hidden_dim.",
        min=1,
        family="rtdetr",
        architecture=True,
        size="breadth",
    )
    use_encoder_idx: list[int] = field(
        [2],
        "Levels (position in return_interm_indices) that get the transformer encoder.",
        min=0,
        max=3,
        family="rtdetr",
        architecture=True,
        in_weights=False,
    )
    hidden_dim: int = field(
        256,
        "Width of tokens and fused levels; a multiple of 4 and of nheads.",
        min=4,
        family="rtdetr",
        architecture=True,
        size="width",
    )
    nheads: int = field(
        8, "Attention heads of encoder and decoder.", min=1, family="rtdetr", architecture=True, in_weights=False
    )
    dropout_ratio: float = field(0.0, "Dropout in encoder and decoder layers.", min=0.0, max=1.0, family="rtdetr")
    enc_layers: int = field(
        1,
        "Transformer layers on each level of use_encoder_idx.",
        min=1,
        automl=True,
        family="rtdetr",
        architecture=True,
        size="depth",
    )
    dim_feedforward: int = field(
        1024,
        "Width of the feed-forward network in encoder and decoder layers.",
        min=1,
        family="rtdetr",
        architecture=True,
        size="breadth",
    )
    pe_temperature: int = field(
        10000,
        "Temperature of the encoder's sine-cosine position embedding.",
        min=1,
        max=INF,
        family="rtdetr",
        architecture=True,
        in_weights=False,
    )
    pe_order: str = field(
        "columns",
        "Order of the encoder's position embedding: columns = official RT-DETR and TAO, rows = Hugging Face "
        "transformers. It makes a difference on non-square inputs only.",
        options=("columns", "rows"),
        origin="ours",
        family="rtdetr",
        architecture=True,
    )
    expansion: float = field(
        1.0,
        "Width of a fusion block inside, relative to hidden_dim.",
        min=0.0,
        max=INF,
        family="rtdetr",
        architecture=True,
    )
    depth_mult: int = field(
        1,
        "Depth of the fusion blocks: 3 * depth_mult RepVGG blocks each.",
        min=1,
        max=INF,
        family="rtdetr",
        architecture=True,
        size="depth",
    )
    enc_act: str = field(
        "gelu",
        "Activation of the encoder's feed-forward network.",
        options=ENCODER_ACTIVATIONS,
        family="rtdetr",
        architecture=True,
        in_weights=False,
    )
    act: str = field(
        "silu",
        "Activation of the fusion convolutions.",
        options=ENCODER_ACTIVATIONS,
        family="rtdetr",
        architecture=True,
        in_weights=False,
    )
    dec_layers: int = field(6, "Decoder layers.", min=1, automl=True, family="rtdetr", architecture=True, size="depth")
    dec_hidden_dim: int | None = field(
        None,
        "Width of the decoder, a multiple of nheads; null = hidden_dim. The official R101 has 256 behind an encoder of "
        "384.",
        min=1,
        origin="ours",
        family="rtdetr",
        architecture=True,
        size="width",
    )
    dec_dim_feedforward: int | None = field(
        None,
        "Width of the feed-forward network in decoder layers; null = dim_feedforward. The official R101 has 1024, and "
        "2048 in the encoder.",
        min=1,
        origin="ours",
        family="rtdetr",
        architecture=True,
        size="breadth",
    )
    num_points: list[int] = field(
        [4],
        "Points that a query samples on each level: one number for all levels, or one per level (RT-DETRv2).",
        min=1,
        origin="ours",
        family="rtdetr",
        architecture=True,
    )
    cross_attn_method: str = field(
        "default",
        "How levels are sampled: default = bilinear; discrete = whole pixels, which every runtime can do, with offsets "
        "that are not trained (RT-DETRv2: start it from a model trained with default).",
        options=("default", "discrete"),
        origin="ours",
        family="rtdetr",
        architecture=True,
    )
    offset_scale: float = field(
        0.5,
        "Reach of the sampling: an offset of as many units as a level has points is this share of the box's side.",
        above=0.0,
        origin="ours",
        family="rtdetr",
        architecture=True,
    )
    drop_path: float | None = field(
        None,
        "Share of images for which the backbone's last block is skipped in training; it rises linearly from the first "
        "block on (FAN: the same in all). null = the network's own: 0.3 for FAN, 0 for others.",
        min=0.0,
        max=0.99,
        origin="ours",
        family="rtdetr",
    )
    dn_number: int = field(
        100,
        "Denoising: most positive queries of an image, all groups together; as many negative ones are added. 0 = no "
        "denoising. Of an image with more objects, each step denoises a random selection of dn_number.",
        min=0,
        max=INF,
        family="rtdetr",
    )
    label_noise_ratio: float = field(
        0.5,
        "Denoising: twice the probability that a query's class is replaced by a random one.",
        min=0.0,
        max=2.0,
        origin="ours",
        family="rtdetr",
    )
    box_noise_scale: float = field(
        1.0,
        "Denoising: how far the corners of a query's box move, relative to half its side; negatives move by 1 to 2 "
        "times as much.",
        min=0.0,
        max=INF,
        origin="ours",
        family="rtdetr",
    )
    eval_idx: int = field(
        -1,
        "Decoder layer whose prediction is used outside training; later ones are skipped. -1 = the last.",
        min=-1,
        max=INF,
        family="rtdetr",
        in_weights=False,
    )
    vfl_loss_coef: float = field(1.0, "Weight of the varifocal (class) loss.", min=0.0, max=INF, family="rtdetr")
    bbox_loss_coef: float = field(5.0, "Weight of the L1 box loss.", min=0.0, max=INF)
    giou_loss_coef: float = field(2.0, "Weight of the generalized IoU loss.", min=0.0, max=INF)
    class_cost: float = field(2.0, "Weight of the class term when queries are matched to objects.", min=0.0, max=INF)
    bbox_cost: float = field(5.0, "Weight of the L1 box term in the matching.", min=0.0, max=INF)
    giou_cost: float = field(2.0, "Weight of the generalized IoU term in the matching.", min=0.0, max=INF)
    alpha: float = field(0.75, "Varifocal loss: weight of negatives.", above=0.0, family="rtdetr")
    gamma: float = field(2.0, "Varifocal loss: focusing power on negatives.", above=0.0, family="rtdetr")
    clip_max_norm: float = field(
        0.1,
        "Accepted for old specs; gradients are clipped by train.clip_grad_norm.",
        unused="gradients are clipped by train.clip_grad_norm",
    )
    aux_loss: bool = field(True, "Supervise every decoder layer and the encoder, not only the last layer.")
    loss_types: list[str] = field(["vfl", "boxes"], "Losses to use.", options=("vfl", "boxes"), family="rtdetr")
    backbone_names: list[str] = field(
        ["backbone.0"],
        "Accepted for old specs; the backbone is known without a name.",
        unused="the backbone's parameters are known without a name pattern",
    )
    linear_proj_names: list[str] = field(
        ["reference_points", "sampling_offsets"],
        "Parameters whose name contains one of these learn at lr * train.optim.lr_linear_proj_mult.",
        parameter_groups=True,
    )
    distillation_loss_coef: float = field(1.0, "distill: weight of the sum of all binding losses.", min=0.0)
    frozen_fm: FrozenFmSpec = field(FrozenFmSpec, "Frozen foundation model beside the backbone.", family="rtdetr")
    arch: str = field(
        DEFAULT_FAMILY,
        "Which family: rtdetr; rfdetr, whose own fields stand below model.rfdetr.",
        options=tuple(FAMILIES),
        origin="ours",
        architecture=True,
    )
    rfdetr: RfdetrSpec = field(RfdetrSpec, "RF-DETR; only read with arch rfdetr.", family="rfdetr")

    @property
    def kind(self) -> str:
        """What the model is called in messages and file names: `rtdetr-resnet_50`, `rfdetr-nano`."""
        return f"{self.arch}-{self.family.variant(self)}"

    @property
    def family(self) -> Family:
        return family_named(self.arch)

    @property
    def size_multiple(self) -> int:
        """Height and width of every image must be multiples of this."""
        return self.family.size_multiple(self)

    @property
    def query_count(self) -> int:
        """How many objects the model can find in an image."""
        return self.family.query_count(self)

    @property
    def predicts_masks(self) -> bool:
        """Whether the model has a segmentation head, and so needs data with masks."""
        return self.family.predicts_masks(self)
