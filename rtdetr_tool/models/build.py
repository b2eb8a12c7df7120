"""Builds a detector from the `model` section of a spec; the only place in `models` that sees a spec."""

from __future__ import annotations

import torch
from torch import nn

from rtdetr_tool.catalog import BACKBONES, FOUNDATION_MODELS, TIMM
from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.checkpoints.layout import state_dict_of
from rtdetr_tool.errors import UserError
from rtdetr_tool.models.backbones.edgenext_bn import EdgeNextBnBackbone
from rtdetr_tool.models.backbones.fan import FanBackbone
from rtdetr_tool.models.backbones.timm_any import any_timm_backbone
from rtdetr_tool.models.backbones.timm_resnet import ResNetBackbone
from rtdetr_tool.models.backbones.timm_staged import ConvNextBackbone, EfficientVitBackbone, StagedBackbone
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.models.rfdetr.build import build_rfdetr
from rtdetr_tool.models.rtdetr.decoder import RTDETRDecoder
from rtdetr_tool.models.rtdetr.detector import RTDETR
from rtdetr_tool.models.rtdetr.encoder import HybridEncoder
from rtdetr_tool.models.rtdetr.foundation import FoundationRTDETR, FrozenRadio
from rtdetr_tool.models.rtdetr.radio import RadioViT
from rtdetr_tool.spec import FrozenFmSpec, ModelSpec

# Family -> its class; those of `timm/<name>` are chosen by what timm can do with the network.
_FAMILIES: dict[str, type[nn.Module]] = {
    "resnet": ResNetBackbone,
    "convnext": ConvNextBackbone,
    "convnextv2": StagedBackbone,
    "efficientvit": EfficientVitBackbone,
    "edgenext": StagedBackbone,
    "edgenext_bn": EdgeNextBnBackbone,
}

WITHOUT_DROP_PATH = ("efficientvit",)


def build_backbone(spec: ModelSpec, activation_checkpoint: bool = False) -> nn.Module:
    """The backbone of `spec` with random weights."""
    indices = spec.return_interm_indices
    drop_path = {} if spec.drop_path is None else {"drop_path_rate": spec.drop_path}
    if spec.backbone.startswith(TIMM):
        backbone = any_timm_backbone(spec.backbone.removeprefix(TIMM), indices, activation_checkpoint, **drop_path)
    else:
        row = BACKBONES.get(spec.backbone)
        if row is None:
            raise UserError(f"model.backbone: '{spec.backbone}' is not known; allowed: {', '.join(BACKBONES)}")
        if row.family == "fan":
            own = {} if spec.drop_path is None else {"drop_path": spec.drop_path}
            backbone = FanBackbone(indices, activation_checkpoint, **{**row.options, **own})
        elif drop_path and row.family in WITHOUT_DROP_PATH:
            raise UserError(f"model.drop_path: {spec.backbone} has no blocks that could be skipped; leave it out")
        else:
            build = _FAMILIES[row.family]
            backbone = build(row.timm_name, indices, activation_checkpoint, **row.options, **drop_path)
    if tuple(spec.feat_strides) != backbone.strides:
        raise UserError(
            f"model.feat_strides {list(spec.feat_strides)} does not fit {spec.backbone} with return_interm_indices "
            f"{list(indices)}: the strides are {list(backbone.strides)}"
        )
    return backbone


def build_detector(spec: ModelSpec, num_classes: int, activation_checkpoint: bool = False) -> Detector:
    """A detector with random weights, in training mode, of the family `spec.arch`.

    A frozen foundation model comes with its weights, from the file that the spec names.
    """
    build = build_rfdetr if spec.arch == "rfdetr" else _build_rtdetr
    detector = build(spec, num_classes, activation_checkpoint)
    if not spec.train_backbone:
        detector.freeze(["backbone"])
    return detector


def _build_rtdetr(spec: ModelSpec, num_classes: int, activation_checkpoint: bool) -> RTDETR:
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
