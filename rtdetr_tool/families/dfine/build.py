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
    own = resolve_dfine(spec.dfine)
    row = DFINE_VARIANTS[own.variant]
    backbone = HGNetV2(row.backbone, row.indices, activation_checkpoint)
    encoder = HybridEncoder(
        backbone.channels,
        own.hidden_dim,
        attention_levels=(len(row.indices) - 1,),
        num_heads=DFINE_HEADS,
        dim_feedforward=own.dim_feedforward,
        pe_order=own.pe_order,
        parts=dfine_fusion(own.hidden_dim, own.expansion, own.depth_mult),
    )
    decoder = DFINEDecoder(
        [own.hidden_dim] * len(row.indices),
        num_classes,
        own.dec_hidden_dim,
        own.num_queries,
        num_layers=own.dec_layers,
        num_heads=DFINE_HEADS,
        num_points=own.num_points,
        dim_feedforward=own.dec_dim_feedforward,
        eval_idx=own.eval_idx,
        layer_scale=own.layer_scale,
        reg_max=own.reg_max,
        reg_scale=own.reg_scale,
        num_denoising=own.dn_number,
        label_noise=own.label_noise_ratio,
        box_noise=own.box_noise_scale,
    )
    return DFINE(backbone, encoder, decoder)


def build_criterion(spec: ModelSpec) -> DFINECriterion:
    own = resolve_dfine(spec.dfine)
    matcher = HungarianMatcher(spec.class_cost, spec.bbox_cost, spec.giou_cost)
    weights = {
        f"loss_{own.class_loss}": own.vfl_loss_coef,
        "loss_bbox": spec.bbox_loss_coef,
        "loss_giou": spec.giou_loss_coef,
        "loss_fgl": own.fgl_loss_coef,
        "loss_ddf": own.ddf_loss_coef,
    }
    return DFINECriterion(
        matcher, weights, own.reg_max, own.reg_scale, own.alpha, own.gamma, spec.aux_loss, own.class_loss
    )
