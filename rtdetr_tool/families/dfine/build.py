"""Build a D-FINE and its loss from the `model` section of a spec."""

from __future__ import annotations

from rtdetr_tool.catalog import DFINE_HEADS, DFINE_VARIANTS
from rtdetr_tool.families.dfine.loss import DFINECriterion
from rtdetr_tool.families.dfine.model.backbone import HGNetV2
from rtdetr_tool.families.dfine.model.decoder import DFINEDecoder
from rtdetr_tool.families.dfine.model.detector import DFINE
from rtdetr_tool.families.dfine.model.encoder import dfine_fusion
from rtdetr_tool.families.dfine.spec import resolve_dfine
from rtdetr_tool.losses.matcher import HungarianMatcher
from rtdetr_tool.models.hybrid_encoder import HybridEncoder
from rtdetr_tool.spec import ModelSpec


def build_detector(spec: ModelSpec, num_classes: int, activation_checkpoint: bool = False) -> DFINE:
    """A D-FINE with random weights, in training mode."""
    fields = resolve_dfine(spec.dfine)
    row = DFINE_VARIANTS[fields.variant]
    backbone = HGNetV2(row.backbone, row.indices, activation_checkpoint, spec.num_channels)
    encoder = HybridEncoder(
        backbone.channels,
        fields.hidden_dim,
        attention_levels=(len(row.indices) - 1,),
        num_heads=DFINE_HEADS,
        dim_feedforward=fields.dim_feedforward,
        pe_order=fields.pe_order,
        parts=dfine_fusion(fields.hidden_dim, fields.expansion, fields.depth_mult),
    )
    decoder = DFINEDecoder(
        [fields.hidden_dim] * len(row.indices),
        num_classes,
        fields.dec_hidden_dim,
        fields.num_queries,
        num_layers=fields.dec_layers,
        num_heads=DFINE_HEADS,
        num_points=fields.num_points,
        dim_feedforward=fields.dec_dim_feedforward,
        eval_idx=fields.eval_idx,
        layer_scale=fields.layer_scale,
        reg_max=fields.reg_max,
        reg_scale=fields.reg_scale,
        num_denoising=fields.dn_number,
        label_noise=fields.label_noise_ratio,
        box_noise=fields.box_noise_scale,
    )
    return DFINE(backbone, encoder, decoder)


def build_criterion(spec: ModelSpec) -> DFINECriterion:
    fields = resolve_dfine(spec.dfine)
    matcher = HungarianMatcher(spec.class_cost, spec.bbox_cost, spec.giou_cost)
    weights = {
        f"loss_{fields.class_loss}": fields.vfl_loss_coef,
        "loss_bbox": spec.bbox_loss_coef,
        "loss_giou": spec.giou_loss_coef,
        "loss_fgl": fields.fgl_loss_coef,
        "loss_ddf": fields.ddf_loss_coef,
    }
    return DFINECriterion(
        matcher, weights, fields.reg_max, fields.reg_scale, fields.alpha, fields.gamma, spec.aux_loss, fields.class_loss
    )
