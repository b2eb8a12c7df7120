"""Build the toy and its loss from the `model` section of a spec."""

from __future__ import annotations

from typing import Any

from rtdetr_tool.losses.criterion import SetCriterion
from rtdetr_tool.losses.matcher import HungarianMatcher
from rtdetr_tool.models.build import build_backbone
from toy_family.model.detector import ToyDecoder, ToyDetr
from toy_family.spec import VARIANTS


def build_detector(spec: Any, num_classes: int, activation_checkpoint: bool = False) -> ToyDetr:
    own = spec.toy
    width = VARIANTS[own.variant]
    decoder = ToyDecoder(num_classes, width, own.num_queries, own.dec_layers, own.nheads)
    return ToyDetr(build_backbone(own, activation_checkpoint), width, decoder)


def build_criterion(spec: Any) -> SetCriterion:
    matcher = HungarianMatcher(spec.class_cost, spec.bbox_cost, spec.giou_cost)
    weights = {
        "loss_vfl": spec.toy.cls_loss_coef,
        "loss_bbox": spec.bbox_loss_coef,
        "loss_giou": spec.giou_loss_coef,
    }
    return SetCriterion(matcher, weights)
