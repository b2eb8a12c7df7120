"""Classes of timm's backbone families that a spec can name; importing this module imports timm."""

from __future__ import annotations

from rtdetr_tool.models.backbones.dinov3 import Dinov3ConvNext, Dinov3Vit
from rtdetr_tool.models.backbones.edgenext_bn import EdgeNextBnBackbone
from rtdetr_tool.models.backbones.timm_network import TimmBackbone
from rtdetr_tool.models.backbones.timm_resnet import ResNetBackbone
from rtdetr_tool.models.backbones.timm_staged import ConvNextBackbone, EfficientVitBackbone, StagedBackbone

# Backbone family -> class; for `timm/<name>` the class depends on how timm extracts features.
TIMM_FAMILIES: dict[str, type[TimmBackbone] | type[Dinov3ConvNext]] = {
    "resnet": ResNetBackbone,
    "convnext": ConvNextBackbone,
    "convnextv2": StagedBackbone,
    "efficientvit": EfficientVitBackbone,
    "edgenext": StagedBackbone,
    "edgenext_bn": EdgeNextBnBackbone,
    "dinov3_convnext": Dinov3ConvNext,
    "dinov3_vit": Dinov3Vit,
}
