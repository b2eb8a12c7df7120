"""Anchor boxes of encoder tokens (two-stage Deformable DETR, arXiv:2010.04159), shared by all families."""

from __future__ import annotations

import torch
from torch import Tensor

from rtdetr_tool.ops.deformable import Shapes

SIZE = 0.05  # relative side length on the finest level; doubles with each level
MARGIN = 0.01  # anchors with a coordinate outside (margin, 1 - margin) are invalid


def square_anchors(shapes: Shapes, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """A square around the center of every token, [1, S, 4] cxcywh 0..1, and a mask of the valid ones, [1, S, 1]."""
    boxes = []
    for level, (height, width) in enumerate(shapes):
        y, x = torch.meshgrid(
            torch.arange(height, dtype=torch.float32, device=device),
            torch.arange(width, dtype=torch.float32, device=device),
            indexing="ij",
        )
        center = torch.stack([(x + 0.5) / width, (y + 0.5) / height], dim=-1).reshape(-1, 2)
        boxes.append(torch.cat([center, torch.full_like(center, SIZE * 2.0**level)], dim=-1))
    anchors = torch.cat(boxes)[None]
    return anchors, ((anchors > MARGIN) & (anchors < 1 - MARGIN)).all(-1, keepdim=True)
