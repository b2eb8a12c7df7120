"""Predictions of D-FINE in training in addition to classes and boxes.

Shape legend: L decoder layers, B batch, Q queries, D denoising queries, C classes, R reg_max.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rtdetr_tool.ops.structures import DenoisingPredictions, TrainingPredictions


@dataclass(kw_only=True)
class DFINEPredictions(TrainingPredictions):
    """Predictions with the distributions of the box edges, and those of the head before the first refinement."""

    layer_corners: Tensor  # [L, B, Q, 4 * (R + 1)] logits of the distributions of each edge
    references: Tensor  # [B, Q, 4] cxcywh 0..1, the boxes whose edges all layers move; no gradient
    first_logits: Tensor  # [B, Q, C], of the first layer without the estimate of the localization quality
    first_boxes: Tensor  # [B, Q, 4], of which `references` are the values


@dataclass(kw_only=True)
class DFINEDenoising(DenoisingPredictions):
    """The same of the denoising queries."""

    corners: Tensor  # [L, B, D, 4 * (R + 1)]
    references: Tensor  # [B, D, 4]
    first_logits: Tensor  # [B, D, C]
    first_boxes: Tensor  # [B, D, 4]
