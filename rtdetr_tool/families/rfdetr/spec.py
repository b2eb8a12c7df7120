"""The `model.rfdetr` section: the variant of RF-DETR and the fields in which it differs from the published one."""

from __future__ import annotations

from dataclasses import dataclass

from rtdetr_tool.catalog import ENCODERS, PROJECTOR_SCALES, RFDETR_VARIANTS
from rtdetr_tool.families.base import QUERY_COUNT
from rtdetr_tool.spec.fields import INF, field


@dataclass(frozen=True)
class RfdetrSpec:
    """Architecture and loss of RF-DETR. null = the variant's value."""

    variant: str = field(
        "nano",
        "Published variant of RF-DETR; large_2025 is the Large model of 2025, which Roboflow has replaced.",
        options=tuple(RFDETR_VARIANTS),
        origin="ours",
        architecture=True,
    )
    encoder: str | None = field(
        None,
        "Backbone: a DINOv2 or DINOv3 with windowed attention, or a ConvNeXt of DINOv3. Only the variant's own has "
        "published weights of the whole detector.",
        options=tuple(ENCODERS),
        origin="ours",
        architecture=True,
    )
    out_feature_indexes: list[int] | None = field(
        None,
        "Numbers of ViT blocks whose output becomes a feature map, ascending. They also determine the blocks with "
        "global attention. Of a ConvNeXt: numbers of stages, [2, 3, 4] if null.",
        min=0,
        max=12,
        origin="ours",
        architecture=True,
    )
    projector_scale: list[str] | None = field(
        None,
        "Levels of the projector, ascending: P3 has twice the size of the ViT's feature map, P4 the same, P5 half.",
        options=tuple(PROJECTOR_SCALES),
        origin="ours",
        architecture=True,
    )
    hidden_dim: int | None = field(
        None,
        "Number of channels of levels and queries; a multiple of 4, sa_nheads and ca_nheads.",
        min=4,
        origin="ours",
        architecture=True,
        size="width",
    )
    dec_layers: int | None = field(None, "Decoder layers.", min=1, origin="ours", architecture=True, size="depth")
    sa_nheads: int | None = field(
        None, "Heads of the decoder's self-attention.", min=1, origin="ours", architecture=True
    )
    ca_nheads: int | None = field(
        None, "Heads of the decoder's deformable cross-attention.", min=1, origin="ours", architecture=True
    )
    dec_n_points: int | None = field(
        None, "Sampling points of a query per head and level.", min=1, origin="ours", architecture=True
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
        "Groups of queries in training, each of which matches every object once. Inference only uses the first group.",
        min=1,
        origin="ours",
        size="breadth",
    )
    bbox_reparam: bool = field(
        True,
        "Predict boxes relative to the size of their reference box; false = as logits.",
        origin="ours",
        architecture=True,
    )
    lite_refpoint_refine: bool = field(
        True,
        "All decoder layers use the first reference box; false = each uses the box of the previous layer.",
        origin="ours",
        architecture=True,
    )
    resolution: int | None = field(
        None,
        "Side of the images that the model is designed for, a multiple of patch_size * num_windows. It determines the "
        "number of position embeddings and the image sizes in dataset.augmentation unless those are set. For other "
        "sizes the embeddings are interpolated.",
        min=1,
        unit="pixels",
        origin="ours",
    )
    patch_size: int | None = field(
        None, "Side of a patch of the ViT.", min=1, unit="pixels", origin="ours", architecture=True
    )
    num_windows: int | None = field(
        None,
        "Windows per side of the image to which most ViT blocks restrict attention.",
        min=1,
        origin="ours",
        architecture=True,
    )
    positional_encoding_size: int | None = field(
        None,
        "Side of the square of learned position embeddings, in patches; null = resolution / patch_size if the "
        "resolution is set, otherwise the variant's value.",
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
        "Drop path rate of the last ViT block in training; it increases linearly from 0 in the first block.",
        min=0.0,
        max=0.99,
        origin="ours",
    )
    segmentation_head: bool | None = field(
        None,
        "Also predict a mask for each object, as the seg_ variants do. Requires annotations with masks.",
        origin="ours",
        architecture=True,
    )
    mask_downsample_ratio: int = field(
        4,
        "Ratio of the image size to the size of the predicted masks.",
        min=1,
        unit="pixels",
        origin="ours",
        architecture=True,
    )
    use_grouppose_keypoints: bool | None = field(
        None,
        "Also predict keypoints for each object, as keypoint_preview does. Requires annotations with keypoints, "
        "bbox_reparam and lite_refpoint_refine.",
        origin="ours",
        architecture=True,
    )
    num_keypoints_per_class: list[int] | None = field(
        None,
        "Number of keypoints by class index, 0 for classes without any, such as [0, 17]; null = that of the classes in "
        "the training data, in a model without data the variant's.",
        min=0,
        max=1000,
        origin="ours",
        architecture=True,
        size="total",
    )
    keypoint_cross_attn: bool = field(
        True, "Keypoints attend to the image themselves, not only to their object.", origin="ours", architecture=True
    )
    inter_instance_kp_attn: bool = field(
        False, "Each keypoint also attends to the same keypoint of the other objects.", origin="ours", architecture=True
    )
    grouppose_keypoint_dim_downscale: int = field(
        1, "hidden_dim relative to the width of keypoint queries.", min=1, origin="ours", architecture=True
    )
    dual_projector: bool | None = field(
        None, "A second projector gives the decoder its levels.", origin="ours", architecture=True
    )
    dual_projector_kp_only: bool | None = field(
        None,
        "Only keypoints attend to the levels of the second projector, objects to those of the first.",
        origin="ours",
        architecture=True,
    )
    postprocess_trace_alpha: float = field(
        0.2,
        "How much uncertain keypoints reduce the score of their object: log score - alpha * log of the mean variance; "
        "0 = not at all.",
        min=0.0,
        max=INF,
        origin="ours",
        unlimited=True,
    )
    accept_platform_model_license: bool = field(
        False,
        "Confirm that you accept Roboflow's Platform Model License (PML-1.0), which is required to use the published "
        "weights of xlarge and 2xlarge.",
        origin="ours",
    )
    cls_loss_coef: float | None = field(
        None,
        "Weight of the IoU-aware class loss; 1, for keypoint_preview 2.",
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
        16, "Pixels of a predicted mask per point at which the mask loss is computed.", min=1, origin="ours"
    )
    keypoint_l1_loss_coef: float = field(
        1.0,
        "Weight of the L1 distance of keypoints relative to the size of their object, in the loss and in the matching.",
        min=0.0,
        max=INF,
        origin="ours",
        unlimited=True,
    )
    keypoint_findable_loss_coef: float = field(
        1.0,
        "Weight of the cross-entropy of whether a keypoint is annotated, in the loss and in the matching.",
        min=0.0,
        max=INF,
        origin="ours",
        unlimited=True,
    )
    keypoint_visible_loss_coef: float = field(
        1.0,
        "Weight of the cross-entropy of whether a keypoint is visible, in the loss and in the matching.",
        min=0.0,
        max=INF,
        origin="ours",
        unlimited=True,
    )
    keypoint_nll_loss_coef: float = field(
        1.0,
        "Weight of the negative log-likelihood of keypoints with the predicted precision, in the loss and in the "
        "matching.",
        min=0.0,
        max=INF,
        origin="ours",
        unlimited=True,
    )
    focal_alpha: float = field(
        0.25,
        "Class loss: the target of a matched class is p^focal_alpha * IoU^(1 - focal_alpha); weight of positives in "
        "the matching.",
        min=0.0,
        max=1.0,
        origin="ours",
    )
