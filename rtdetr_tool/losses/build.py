"""Builds the criterion from the `model` section of a spec; the only place in `losses` that sees a spec."""

from __future__ import annotations

from rtdetr_tool.losses.criterion import SetCriterion
from rtdetr_tool.losses.matcher import HungarianMatcher
from rtdetr_tool.losses.rfdetr import GroupMatcher, RFDETRCriterion
from rtdetr_tool.spec import ModelSpec


def build_criterion(spec: ModelSpec) -> SetCriterion:
    if spec.arch == "rfdetr":
        return _build_rfdetr_criterion(spec)
    matcher = HungarianMatcher(spec.class_cost, spec.bbox_cost, spec.giou_cost)
    weights = {
        "loss_vfl": spec.vfl_loss_coef,
        "loss_bbox": spec.bbox_loss_coef,
        "loss_giou": spec.giou_loss_coef,
    }
    return SetCriterion(matcher, weights, spec.loss_types, spec.alpha, spec.gamma, spec.aux_loss)


def _build_rfdetr_criterion(spec: ModelSpec) -> RFDETRCriterion:
    own = spec.rfdetr
    matcher = GroupMatcher(spec.class_cost, spec.bbox_cost, spec.giou_cost, own.focal_alpha)
    weights = {
        "loss_ce": own.cls_loss_coef,
        "loss_bbox": spec.bbox_loss_coef,
        "loss_giou": spec.giou_loss_coef,
    }
    return RFDETRCriterion(matcher, weights, own.group_detr, own.focal_alpha, spec.aux_loss)
