"""Build an RF-DETR and its loss from the `model` section of a spec."""

from __future__ import annotations

from typing import Any

from rtdetr_tool.catalog import CONVNEXT, DINOV3, ENCODERS, KEYPOINTS, MASKS
from rtdetr_tool.errors import UserError
from rtdetr_tool.families.rfdetr.loss import GroupMatcher, RFDETRCriterion
from rtdetr_tool.families.rfdetr.model.decoder import RFDETRDecoder
from rtdetr_tool.families.rfdetr.model.detector import RFDETR
from rtdetr_tool.families.rfdetr.model.keypoint_decoder import KeypointDecoder
from rtdetr_tool.families.rfdetr.model.mask_head import MaskHead
from rtdetr_tool.families.rfdetr.model.projector import MultiScaleProjector
from rtdetr_tool.families.rfdetr.resolved import ResolvedRfdetrSpec, resolve_rfdetr
from rtdetr_tool.losses.keypoints import KeypointLoss
from rtdetr_tool.losses.masks import MaskLoss
from rtdetr_tool.models.backbones.dinov2_windowed import WindowedDinov2
from rtdetr_tool.models.backbones.dinov3_windowed import WindowedDinov3
from rtdetr_tool.models.backbones.single_stride import SingleStrideBackbone, SingleStrideConvNext
from rtdetr_tool.spec import ModelSpec


def build_detector(spec: ModelSpec, num_classes: int, activation_checkpoint: bool = False) -> RFDETR:
    """An RF-DETR with random weights, in training mode.

    Args:
        num_classes: rows of the class heads. RF-DETR's own `num_classes` does not count the background, for which its
            heads have one more row that no object uses; the 91 rows of its COCO weights are the category ids 0..90.
    """
    config = resolve_rfdetr(spec.rfdetr)
    backbone = _build_backbone(config, activation_checkpoint=activation_checkpoint, num_channels=spec.num_channels)
    projector = MultiScaleProjector(backbone.channels, config.hidden_dim, config.projector_scale)
    second = None
    if config.dual_projector:
        second = MultiScaleProjector(backbone.channels, config.hidden_dim, config.projector_scale)
        attended = config.use_grouppose_keypoints and config.keypoint_cross_attn
        second.requires_grad_(attended or not config.dual_projector_kp_only)  # else nothing uses it
    head = (
        MaskHead(config.hidden_dim, config.dec_layers, config.mask_downsample_ratio)
        if config.segmentation_head
        else None
    )
    decoder = _build_decoder(config, num_classes)
    return RFDETR(backbone, projector, decoder, head, second, config.dual_projector_kp_only)


def _build_backbone(config: ResolvedRfdetrSpec, **options: Any) -> SingleStrideBackbone:
    row = ENCODERS[config.encoder]
    if row.kind == CONVNEXT:
        name = row.timm_name.partition(".")[0]
        return SingleStrideConvNext(name, config.out_feature_indexes, drop_path_rate=config.drop_path, **options)
    options |= {
        "width": row.width,
        "depth": row.depth,
        "num_heads": row.num_heads,
        "num_registers": row.num_registers,
        "out_indices": config.out_feature_indexes,
        "patch_size": config.patch_size,
        "num_windows": config.num_windows,
        "drop_path": config.drop_path,
    }
    if row.kind == DINOV3:
        return WindowedDinov3(gated=row.gated, **options)
    return WindowedDinov2(grid=config.positional_encoding_size, **options)


def _build_decoder(config: ResolvedRfdetrSpec, num_classes: int) -> RFDETRDecoder:
    if not config.use_grouppose_keypoints:
        return RFDETRDecoder(num_classes, **_decoder_arguments(config))
    counts = config.num_keypoints_per_class
    if not any(counts):
        raise UserError(
            "model.rfdetr.num_keypoints_per_class: required, but not set; expected the number of keypoints by class "
            "index, such as [17]"
        )
    if len(counts) > num_classes:
        raise UserError(
            f"model.rfdetr.num_keypoints_per_class: {counts} is invalid; expected at most {num_classes} items, one per "
            "class"
        )
    return KeypointDecoder(
        num_classes,
        counts,
        downscale=config.grouppose_keypoint_dim_downscale,
        attends_image=config.keypoint_cross_attn,
        attends_objects=config.inter_instance_kp_attn,
        trace_alpha=config.postprocess_trace_alpha,
        **_decoder_arguments(config),
    )


def _decoder_arguments(config: ResolvedRfdetrSpec) -> dict[str, Any]:
    return {
        "levels": len(config.projector_scale),
        "hidden_dim": config.hidden_dim,
        "num_queries": config.num_queries,
        "num_layers": config.dec_layers,
        "self_heads": config.sa_nheads,
        "cross_heads": config.ca_nheads,
        "num_points": config.dec_n_points,
        "dim_feedforward": config.dim_feedforward,
        "dropout": config.dropout,
        "group_detr": config.group_detr,
        "bbox_reparam": config.bbox_reparam,
        "lite_refpoint_refine": config.lite_refpoint_refine,
    }


def build_criterion(spec: ModelSpec) -> RFDETRCriterion:
    config = resolve_rfdetr(spec.rfdetr)
    matcher = GroupMatcher(spec.class_cost, spec.bbox_cost, spec.giou_cost, config.focal_alpha)
    weights = {
        "loss_ce": config.cls_loss_coef,
        "loss_bbox": spec.bbox_loss_coef,
        "loss_giou": spec.giou_loss_coef,
    }
    head_loss: MaskLoss | KeypointLoss | None = None
    if spec.predicts == MASKS:
        head_loss = MaskLoss(config.mask_ce_loss_coef, config.mask_dice_loss_coef, config.mask_point_sample_ratio)
    elif spec.predicts == KEYPOINTS:
        head_loss = KeypointLoss(
            config.num_keypoints_per_class,
            config.keypoint_l1_loss_coef,
            config.keypoint_findable_loss_coef,
            config.keypoint_visible_loss_coef,
            config.keypoint_nll_loss_coef,
        )
    return RFDETRCriterion(matcher, weights, config.group_detr, config.focal_alpha, spec.aux_loss, head_loss)
