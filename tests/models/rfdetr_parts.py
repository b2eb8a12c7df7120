"""An RF-DETR that is built quickly: a ViT of four blocks, every width 32 or less."""

from __future__ import annotations

import torch

from rtdetr_tool.families.rfdetr.model.decoder import RFDETRDecoder
from rtdetr_tool.families.rfdetr.model.detector import RFDETR
from rtdetr_tool.families.rfdetr.model.projector import MultiScaleProjector
from rtdetr_tool.models.backbones.dinov2_windowed import WindowedDinov2

CLASSES, QUERIES, GROUPS = 3, 7, 3


def tiny_backbone(**changes) -> WindowedDinov2:
    settings = {
        "width": 16,
        "depth": 4,
        "num_heads": 2,
        "out_indices": (1, 3),
        "patch_size": 8,
        "num_windows": 2,
        "grid": 6,
    }
    return WindowedDinov2(**{**settings, **changes})


def tiny_rfdetr(levels=("P4",), backbone=None, **decoder) -> RFDETR:
    """A small RF-DETR in which every tensor has an effect, because none is zero or identity."""
    torch.manual_seed(0)
    vit = tiny_backbone(**(backbone or {}))
    settings = {
        "levels": len(levels), "hidden_dim": 16, "num_queries": QUERIES, "num_layers": 3, "self_heads": 2,
        "cross_heads": 4, "num_points": 2, "dim_feedforward": 24, "group_detr": GROUPS,
    }  # fmt: skip
    detector = RFDETR(
        vit, MultiScaleProjector(vit.channels, 16, levels), RFDETRDecoder(CLASSES, **{**settings, **decoder})
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in detector.state_dict().values():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return detector
