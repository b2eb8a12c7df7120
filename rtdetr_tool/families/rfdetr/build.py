"""Builds an RF-DETR and its loss from the `model` section of a spec."""

from __future__ import annotations

from typing import Any

from rtdetr_tool.catalog import DINOV2
from rtdetr_tool.families.rfdetr.loss import GroupMatcher, RFDETRCriterion
from rtdetr_tool.families.rfdetr.model.decoder import RFDETRDecoder
from rtdetr_tool.families.rfdetr.model.detector import RFDETR
from rtdetr_tool.families.rfdetr.model.mask_head import MaskHead
from rtdetr_tool.families.rfdetr.model.projector import MultiScaleProjector
from rtdetr_tool.families.rfdetr.spec import ResolvedRfdetrSpec, resolve_rfdetr
from rtdetr_tool.losses.masks import MaskLoss
from rtdetr_tool.models.backbones.dinov2_windowed import WindowedDinov2
from rtdetr_tool.spec import ModelSpec


def build_detector(spec: ModelSpec, num_classes: int, activation_checkpoint: bool = False) -> RFDETR:
    """An RF-DETR with random weights, in training mode.

    Args:
        num_classes: rows of the class heads. RF-DETR's own `num_classes` leaves out the background, for which its heads
            have one row more that no object ever has; the 91 rows of its COCO weights are the category ids 0..90.
    """
    own = resolve_rfdetr(spec.rfdetr)
    vit = DINOV2[own.encoder]
    backbone = WindowedDinov2(
        vit.width,
        vit.depth,
        vit.num_heads,
        taps=own.out_feature_indexes,
        patch_size=own.patch_size,
        num_windows=own.num_windows,
        grid=own.positional_encoding_size,
        num_registers=vit.num_registers,
        drop_path=own.drop_path,
        activation_checkpoint=activation_checkpoint,
    )
    projector = MultiScaleProjector(backbone.channels, own.hidden_dim, own.projector_scale)
    head = MaskHead(own.hidden_dim, own.dec_layers, own.mask_downsample_ratio) if own.segmentation_head else None
    return RFDETR(backbone, projector, RFDETRDecoder(num_classes, **_decoder_arguments(own)), head)


def _decoder_arguments(own: ResolvedRfdetrSpec) -> dict[str, Any]:
    return {
        "levels": len(own.projector_scale),
        "hidden_dim": own.hidden_dim,
        "num_queries": own.num_queries,
        "num_layers": own.dec_layers,
        "self_heads": own.sa_nheads,
        "cross_heads": own.ca_nheads,
        "num_points": own.dec_n_points,
        "dim_feedforward": own.dim_feedforward,
        "dropout": own.dropout,
        "group_detr": own.group_detr,
        "bbox_reparam": own.bbox_reparam,
        "lite_refpoint_refine": own.lite_refpoint_refine,
    }


def build_criterion(spec: ModelSpec) -> RFDETRCriterion:
    own = spec.rfdetr
    matcher = GroupMatcher(spec.class_cost, spec.bbox_cost, spec.giou_cost, own.focal_alpha)
    weights = {
        "loss_ce": own.cls_loss_coef,
        "loss_bbox": spec.bbox_loss_coef,
        "loss_giou": spec.giou_loss_coef,
    }
    mask_loss = (
        MaskLoss(own.mask_ce_loss_coef, own.mask_dice_loss_coef, own.mask_point_sample_ratio)
        if spec.predicts_masks
        else None
    )
    return RFDETRCriterion(matcher, weights, own.group_detr, own.focal_alpha, spec.aux_loss, mask_loss)
