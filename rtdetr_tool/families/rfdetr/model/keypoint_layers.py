"""Parts of RF-DETR's keypoint decoder: a query per keypoint of every object query.

The idea is that of GroupPose (Liu et al. 2023, arXiv:2308.07313): in each decoder layer, the keypoints of an object
attend to each other and to the object, and then to the image around the object's reference box. Submodules have the
names of the public weights.

Shape legend: B batch, N object queries of all groups, K keypoints of all classes, D width, d width of keypoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rtdetr_tool.families.rfdetr.model.layers import GroupDecoderLayer
from rtdetr_tool.models.decoder_layer import DeformableAttention
from rtdetr_tool.ops.deformable import Shapes

_FIRST_SCALE = 1e-6  # of what the keypoints add to an object at first


class KeypointContext(NamedTuple):
    """What the keypoints of all layers have in common."""

    position: Tensor  # [K, d], learned
    blocked: Tensor | None  # [1 + K, 1 + K] bool: keypoints of another class; None = nothing is blocked
    memory: Tensor  # [B, S, D], the tokens that keypoints attend to


class KeypointQueries(nn.Module):
    """A learned query per keypoint, modulated by the content of its object: [..., D] -> [..., K, d]."""

    def __init__(self, dim: int, keypoints: int, outputs: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(keypoints, outputs))
        self.query_norm = nn.LayerNorm(outputs, elementwise_affine=False)
        last = nn.Linear(dim, 3 * outputs)
        nn.init.zeros_(last.bias)
        self.adaLN_modulation = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), last)
        self.out_proj = nn.Linear(outputs, outputs)

    def forward(self, content: Tensor) -> Tensor:
        scale, shift, gate = self.adaLN_modulation(content[..., None, :]).chunk(3, dim=-1)
        modulated = (1 + scale) * self.query_norm(self.queries) + shift
        output: Tensor = self.out_proj(modulated) * gate + self.queries
        return output


class KeypointDecoderLayer(GroupDecoderLayer):
    """A decoder layer that also updates the keypoints of every object.

    Args:
        downscale: width of objects relative to that of keypoints.
        attends_image: keypoints attend to the image themselves.
        attends_objects: a keypoint attends to the same keypoint of the other objects. As in the package, these are
            those of all groups.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        dim_feedforward: int,
        dropout: float,
        act: str,
        cross_attn: DeformableAttention,
        downscale: int = 1,
        attends_image: bool = True,
        attends_objects: bool = False,
    ) -> None:
        super().__init__(dim, num_heads, dim_feedforward, dropout, act, cross_attn)
        width, wide = dim // downscale, 4 * dim // downscale
        self.width = width
        narrows = downscale > 1
        self.inst_in_proj = nn.Linear(dim, width) if narrows else nn.Identity()
        self.inst_pos_in_proj = nn.Linear(dim, width) if narrows else nn.Identity()
        self.inst_out_proj = nn.Linear(width, dim) if narrows else nn.Identity()
        self.memory_in_proj = nn.Linear(dim, width) if narrows else nn.Identity()
        self.kp_inst_self_attn = nn.MultiheadAttention(width, max(1, num_heads // downscale), dropout, batch_first=True)
        self.kp_inst_norm, self.kp_norm = nn.LayerNorm(dim), nn.LayerNorm(width)
        heads = max(1, cross_attn.heads // downscale)
        self.attends_image, self.attends_objects = attends_image, attends_objects
        if attends_objects:
            self.inter_inst_kp_attn = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
            self.inter_inst_kp_norm = nn.LayerNorm(width)
        if attends_image:
            self.kp_cross_attn = DeformableAttention(width, heads, cross_attn.points)
            self.kp_cross_attn_norm = nn.LayerNorm(width)
        self.kp_linear1, self.kp_linear3 = nn.Linear(width, wide), nn.Linear(wide, width)
        self.kp_norm5 = nn.LayerNorm(width)
        self.instance_kp_layer_scale = nn.Parameter(torch.full((1,), _FIRST_SCALE))
        # The weights exist in every file, but without these attentions nothing uses them: DDP would wait for gradients.
        self.memory_in_proj.requires_grad_(attends_image)
        self.inst_pos_in_proj.requires_grad_(attends_image or attends_objects)

    def update_keypoints(
        self,
        content: Tensor,
        keypoints: Tensor,
        reference: Tensor,
        shapes: Shapes,
        position: Tensor,
        context: KeypointContext,
    ) -> tuple[Tensor, Tensor]:
        """Content of objects [B, N, D] and keypoints [B, N, K, d] after the layer; `content` is that of `forward`."""
        joint = torch.cat([self.inst_in_proj(content)[:, :, None], keypoints], dim=2).flatten(0, 1)  # [B * N, 1 + K, d]
        placed = joint + torch.cat([context.position.new_zeros(1, self.width), context.position])
        attended = self.kp_inst_self_attn(placed, placed, joint, attn_mask=context.blocked, need_weights=False)[0]
        attended = attended.view(*keypoints.shape[:2], -1, self.width)
        update = self.dropout(self.inst_out_proj(attended[:, :, 0])) * self.instance_kp_layer_scale
        content = self.kp_inst_norm(content + update)
        keypoints = self.kp_norm(keypoints + self.dropout(attended[:, :, 1:]))
        around = self.inst_pos_in_proj(position)[:, :, None]  # [B, N, 1, d]
        if self.attends_objects:
            keypoints = self._attend_objects(keypoints, around)
        if self.attends_image:
            count = keypoints.shape[2]
            query = (keypoints + around).flatten(1, 2)  # [B, N * K, d]
            boxes = reference[:, :, None].expand(-1, -1, count, -1).flatten(1, 2)
            sampled = self.kp_cross_attn(query, boxes, self.memory_in_proj(context.memory), shapes)
            keypoints = self.kp_cross_attn_norm(keypoints + self.dropout(sampled.view(keypoints.shape)))
        hidden = self.kp_linear3(self.dropout(self.activation(self.kp_linear1(keypoints))))
        return content, self.kp_norm5(keypoints + self.dropout(hidden))

    def _attend_objects(self, keypoints: Tensor, around: Tensor) -> Tensor:
        """Attention of each keypoint to the same keypoint of all objects."""
        batch, objects, count, width = keypoints.shape
        content = keypoints.transpose(1, 2).flatten(0, 1)  # [B * K, N, d]
        query = (keypoints + around).transpose(1, 2).flatten(0, 1)
        attended = self.inter_inst_kp_attn(query, query, content, need_weights=False)[0]
        attended = attended.view(batch, count, objects, width).transpose(1, 2)
        output: Tensor = self.inter_inst_kp_norm(keypoints + self.dropout(attended))
        return output


def blocked_pairs(counts: Sequence[int]) -> Tensor:
    """Which of the object (0) and its keypoints must not attend to each other: keypoints of different classes."""
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(list(counts)))
    blocked = torch.zeros(1 + len(owner), 1 + len(owner), dtype=torch.bool)
    blocked[1:, 1:] = owner[:, None] != owner[None]
    return blocked


def active_keypoints(counts: Sequence[int]) -> Tensor:
    """Which of the largest number of keypoints each class has, [classes, most] bool."""
    return torch.arange(max(counts, default=0)) < torch.tensor(list(counts))[:, None]
