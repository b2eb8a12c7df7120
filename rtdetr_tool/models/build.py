"""Builds a detector from the `model` section of a spec; the only place in `models` that sees a spec."""

from __future__ import annotations

from rtdetr_tool.catalog import BACKBONES, BUILT_BACKBONES
from rtdetr_tool.errors import UserError
from rtdetr_tool.models.backbones.timm_resnet import ResNetBackbone
from rtdetr_tool.models.rtdetr.decoder import RTDETRDecoder
from rtdetr_tool.models.rtdetr.detector import RTDETR
from rtdetr_tool.models.rtdetr.encoder import HybridEncoder
from rtdetr_tool.spec import ModelSpec


def build_backbone(spec: ModelSpec, pretrained: bool = False, activation_checkpoint: bool = False) -> ResNetBackbone:
    """The backbone of `spec`; `pretrained` asks timm for its published weights."""
    row = BACKBONES.get(spec.backbone)
    if row is None or not row.built:
        raise UserError(
            f"model.backbone: this version cannot build '{spec.backbone}'; it builds {', '.join(BUILT_BACKBONES)}"
        )
    backbone = ResNetBackbone(row.timm_name, spec.return_interm_indices, pretrained, activation_checkpoint)
    if tuple(spec.feat_strides) != backbone.strides:
        raise UserError(
            f"model.feat_strides {list(spec.feat_strides)} does not fit {spec.backbone} with return_interm_indices "
            f"{list(spec.return_interm_indices)}: the strides are {list(backbone.strides)}"
        )
    return backbone


def build_detector(
    spec: ModelSpec, num_classes: int, pretrained_backbone: bool = False, activation_checkpoint: bool = False
) -> RTDETR:
    """A detector with random weights (the backbone's from timm if asked), in training mode."""
    backbone = build_backbone(spec, pretrained_backbone, activation_checkpoint)
    encoder = HybridEncoder(
        backbone.channels,
        hidden_dim=spec.hidden_dim,
        attention_levels=spec.use_encoder_idx,
        num_heads=spec.nheads,
        dim_feedforward=spec.dim_feedforward,
        dropout=spec.dropout_ratio,
        num_layers=spec.enc_layers,
        pe_temperature=spec.pe_temperature,
        expansion=spec.expansion,
        depth_mult=spec.depth_mult,
        enc_act=spec.enc_act,
        act=spec.act,
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
    )
    detector = RTDETR(backbone, encoder, decoder)
    if not spec.train_backbone:
        detector.freeze(["backbone"])
    return detector
