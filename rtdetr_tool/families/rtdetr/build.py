"""Builds an RT-DETR and its loss from the `model` section of a spec."""

from __future__ import annotations

import torch

from rtdetr_tool.catalog import FOUNDATION_MODELS
from rtdetr_tool.checkpoints.identify import state_dict_of
from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.families.rtdetr.model.decoder import RTDETRDecoder
from rtdetr_tool.families.rtdetr.model.detector import RTDETR
from rtdetr_tool.families.rtdetr.model.encoder import HybridEncoder
from rtdetr_tool.families.rtdetr.model.foundation import FoundationRTDETR, FrozenRadio
from rtdetr_tool.families.rtdetr.model.radio import RadioViT
from rtdetr_tool.losses.criterion import SetCriterion
from rtdetr_tool.losses.matcher import HungarianMatcher
from rtdetr_tool.models.build import build_backbone
from rtdetr_tool.spec import FrozenFmSpec, ModelSpec


def build_detector(spec: ModelSpec, num_classes: int, activation_checkpoint: bool = False) -> RTDETR:
    """An RT-DETR with random weights, in training mode."""
    backbone = build_backbone(spec, activation_checkpoint)
    frozen_radio = build_frozen_radio(spec.frozen_fm) if spec.frozen_fm.enabled else None
    encoder = HybridEncoder(
        backbone.channels if frozen_radio is None else (*backbone.channels, frozen_radio.width),
        hidden_dim=spec.hidden_dim,
        attention_levels=spec.use_encoder_idx,
        num_heads=spec.nheads,
        dim_feedforward=spec.dim_feedforward,
        dropout=spec.dropout_ratio,
        num_layers=spec.enc_layers,
        pe_temperature=spec.pe_temperature,
        pe_order=spec.pe_order,
        expansion=spec.expansion,
        depth_mult=spec.depth_mult,
        enc_act=spec.enc_act,
        act=spec.act,
        num_outputs=len(backbone.channels),
    )
    decoder = RTDETRDecoder(
        spec.feat_channels,
        num_classes,
        hidden_dim=spec.dec_hidden_dim or spec.hidden_dim,
        num_queries=spec.num_queries,
        num_layers=spec.dec_layers,
        num_heads=spec.nheads,
        num_points=spec.num_points,
        cross_attn_method=spec.cross_attn_method,
        offset_scale=spec.offset_scale,
        dim_feedforward=spec.dec_dim_feedforward or spec.dim_feedforward,
        dropout=spec.dropout_ratio,
        eval_idx=spec.eval_idx,
        num_denoising=spec.dn_number,
        label_noise=spec.label_noise_ratio,
        box_noise=spec.box_noise_scale,
    )
    if frozen_radio is None:
        return RTDETR(backbone, encoder, decoder)
    return FoundationRTDETR(backbone, encoder, decoder, frozen_radio)


def build_frozen_radio(spec: FrozenFmSpec) -> FrozenRadio:
    """RADIO as the spec names it, with the weights of `spec.checkpoint`; without a file it has none yet."""
    row = FOUNDATION_MODELS[spec.backbone]
    with torch.device("meta"):  # no time for random numbers that nobody uses
        vit = RadioViT(row.width, row.depth, row.num_heads)
    frozen_radio = FrozenRadio(vit)
    if spec.checkpoint:
        frozen_radio.load(state_dict_of(load_checkpoint(spec.checkpoint)), spec.checkpoint)
    return frozen_radio


def build_criterion(spec: ModelSpec) -> SetCriterion:
    matcher = HungarianMatcher(spec.class_cost, spec.bbox_cost, spec.giou_cost)
    weights = {
        "loss_vfl": spec.vfl_loss_coef,
        "loss_bbox": spec.bbox_loss_coef,
        "loss_giou": spec.giou_loss_coef,
    }
    return SetCriterion(matcher, weights, spec.loss_types, spec.alpha, spec.gamma, spec.aux_loss)
