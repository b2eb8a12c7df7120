"""Layers of RF-DETR's decoder, in which queries only attend to their own group.

Shape legend: B batch, G groups, Q queries of a group, D width.
"""

from __future__ import annotations

from torch import Tensor

from rtdetr_tool.models.decoder_layer import DecoderLayerBase
from rtdetr_tool.ops.deformable import Memory, Shapes


class GroupDecoderLayer(DecoderLayerBase):
    """RT-DETR's decoder layer in which queries only attend to their own group; content [B, G * Q, D]."""

    def forward(
        self, content: Tensor, reference: Tensor, memory: Memory, shapes: Shapes, position: Tensor, groups: int
    ) -> Tensor:
        attended = self.self_attn(split_groups(content + position, groups), split_groups(content, groups))
        return self.update(content, attended.reshape(content.shape), reference, memory, shapes, position)


def split_groups(x: Tensor, groups: int) -> Tensor:
    """[B, G * Q, D] -> [B * G, Q, D]"""
    return x if groups == 1 else x.reshape(-1, x.shape[1] // groups, x.shape[2])


def merge_groups(x: Tensor) -> Tensor:
    """[G, B, Q, ...] -> [B, G * Q, ...]"""
    return x[0] if x.shape[0] == 1 else x.transpose(0, 1).flatten(1, 2)
