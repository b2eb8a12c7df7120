"""Build an RT-DETR and its loss from the `model` section of a spec."""

from __future__ import annotations

import torch

from rtdetr_tool.catalog import FOUNDATION_MODELS
from rtdetr_tool.checkpoints.identify import state_dict_of
from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.families.rtdetr.model.decoder import RTDETRDecoder
from rtdetr_tool.families.rtdetr.model.detector import RTDETR
from rtdetr_tool.families.rtdetr.model.foundation import FoundationRTDETR, FrozenRadio
from rtdetr_tool.families.rtdetr.model.radio import RadioViT
from rtdetr_tool.families.rtdetr.spec import FrozenFmSpec, rtdetr_fields
from rtdetr_tool.losses.criterion import SetCriterion
from rtdetr_tool.losses.matcher import HungarianMatcher
from rtdetr_tool.models.build import build_backbone
from rtdetr_tool.models.hybrid_encoder import HybridEncoder
from rtdetr_tool.spec import ModelSpec


def build_detector(spec: ModelSpec, num_classes: int, activation_checkpoint: bool = False) -> RTDETR:
    """An RT-DETR with random weights, in training mode."""
    fields = rtdetr_fields(spec)
    backbone = build_backbone(fields, activation_checkpoint, spec.num_channels)
    frozen_radio = build_frozen_radio(fields.frozen_fm) if fields.frozen_fm.enabled else None
    encoder = HybridEncoder(
        backbone.channels if frozen_radio is None else (*backbone.channels, frozen_radio.width),
        hidden_dim=fields.hidden_dim,
        attention_levels=fields.use_encoder_idx,
        num_heads=fields.nheads,
        dim_feedforward=fields.dim_feedforward,
        dropout=fields.dropout_ratio,
        num_layers=fields.enc_layers,
        pe_temperature=fields.pe_temperature,
        pe_order=fields.pe_order,
        expansion=fields.expansion,
        depth_mult=fields.depth_mult,
        enc_act=fields.enc_act,
        act=fields.act,
        num_outputs=len(backbone.channels),
    )
    decoder = RTDETRDecoder(
        fields.feat_channels,
        num_classes,
        hidden_dim=fields.dec_hidden_dim or fields.hidden_dim,
        num_queries=fields.num_queries,
        num_layers=fields.dec_layers,
        num_heads=fields.nheads,
        num_points=fields.num_points,
        cross_attn_method=fields.cross_attn_method,
        offset_scale=fields.offset_scale,
        dim_feedforward=fields.dec_dim_feedforward or fields.dim_feedforward,
        dropout=fields.dropout_ratio,
        eval_idx=fields.eval_idx,
        num_denoising=fields.dn_number,
        label_noise=fields.label_noise_ratio,
        box_noise=fields.box_noise_scale,
    )
    if frozen_radio is None:
        return RTDETR(backbone, encoder, decoder)
    return FoundationRTDETR(backbone, encoder, decoder, frozen_radio)


def build_frozen_radio(spec: FrozenFmSpec) -> FrozenRadio:
    """The RADIO model of the spec with the weights of `spec.checkpoint`, or without weights if no file is set."""
    row = FOUNDATION_MODELS[spec.backbone]
    with torch.device("meta"):  # random initial weights would never be used
        vit = RadioViT(row.width, row.depth, row.num_heads)
    frozen_radio = FrozenRadio(vit)
    if spec.checkpoint:
        frozen_radio.load(state_dict_of(load_checkpoint(spec.checkpoint)), spec.checkpoint)
    return frozen_radio


def build_criterion(spec: ModelSpec) -> SetCriterion:
    fields = rtdetr_fields(spec)
    matcher = HungarianMatcher(spec.class_cost, spec.bbox_cost, spec.giou_cost)
    weights = {
        "loss_mal" if "mal" in fields.loss_types else "loss_vfl": fields.vfl_loss_coef,
        "loss_bbox": spec.bbox_loss_coef,
        "loss_giou": spec.giou_loss_coef,
    }
    return SetCriterion(matcher, weights, fields.loss_types, fields.alpha, fields.gamma, spec.aux_loss)
