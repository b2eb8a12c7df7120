"""The first stage of RF-DETR: tokens propose boxes, and the best ones become the queries' references.

Each group of queries has its own heads here (Group DETR, Chen et al. 2022, arXiv:2207.13085); all groups are computed
in one batched matmul.

Shape legend: B batch, S tokens of all levels, G groups, k selected tokens, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtdetr_tool.ops.anchors import square_anchors
from rtdetr_tool.ops.boxes import inverse_sigmoid
from rtdetr_tool.ops.deformable import Shapes
from rtdetr_tool.ops.layers import MLP, modules_of_type
from rtdetr_tool.ops.onednn import linear


class Selected(NamedTuple):
    """The best tokens of each group; references and boxes are cxcywh, or their logits without `bbox_reparam`."""

    tokens: Tensor  # [G, B, k, D]
    logits: Tensor  # [G, B, k, C]
    references: Tensor  # [G, B, k, 4]


class QuerySelection(nn.Module):
    """The heads of every group on the tokens. Submodules have the names of the public weights."""

    def __init__(self, dim: int, num_classes: int, groups: int, bbox_reparam: bool) -> None:
        super().__init__()
        self.bbox_reparam = bbox_reparam
        self.enc_output = nn.ModuleList(nn.Linear(dim, dim) for _ in range(groups))
        self.enc_output_norm = nn.ModuleList(nn.LayerNorm(dim) for _ in range(groups))
        self.enc_out_class_embed = nn.ModuleList(nn.Linear(dim, num_classes) for _ in range(groups))
        self.enc_out_bbox_embed = nn.ModuleList(MLP(dim, dim, 4, 3) for _ in range(groups))
        self._proposals: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}

    @property
    def groups(self) -> int:
        return len(self.enc_output)

    def keep_groups(self, count: int) -> None:
        """Remove all groups except the first `count`, in place."""
        for heads in (self.enc_output, self.enc_output_norm, self.enc_out_class_embed, self.enc_out_bbox_embed):
            del heads[count:]

    def select(self, memory: Tensor, shapes: Shapes, count: int) -> Selected:
        """The `count` best tokens (at most all) of memory [B, S, D]; at inference for the first group only."""
        proposals, valid = self.proposals(shapes, memory.device)
        memory = memory * valid.to(memory.dtype)
        groups = self.groups if self.training else 1
        tokens = _per_group(memory, list(self.enc_output[:groups]))  # [G, B, S, D]
        tokens = _norm_per_group(tokens, modules_of_type(self.enc_output_norm[:groups], nn.LayerNorm))
        scores = _per_group(tokens, list(self.enc_out_class_embed[:groups]))  # [G, B, S, C]
        best = scores.amax(-1).topk(min(count, _tokens(shapes)), dim=-1).indices[..., None]  # [G, B, k, 1]
        tokens = tokens.gather(2, best.expand(-1, -1, -1, tokens.shape[-1]))
        logits = scores.gather(2, best.expand(-1, -1, -1, scores.shape[-1]))
        proposals = proposals.expand(groups, memory.shape[0], -1, -1).gather(2, best.expand(-1, -1, -1, 4))
        deltas = mlp_per_group(tokens, self.enc_out_bbox_embed[:groups])
        return Selected(tokens, logits, refine(proposals, deltas.float(), self.bbox_reparam))

    def proposals(self, shapes: Shapes, device: torch.device) -> tuple[Tensor, Tensor]:
        """The proposal of each token [1, S, 4] (0, or an infinite logit, where unused) and whether it is used."""
        key = (*shapes, device)
        if key not in self._proposals:
            with torch.inference_mode(False):  # training must be able to use tensors cached during inference
                boxes, valid = square_anchors(shapes, device)
                unused = 0.0 if self.bbox_reparam else torch.inf
                values = boxes if self.bbox_reparam else inverse_sigmoid(boxes)
                self._proposals[key] = values.masked_fill(~valid, unused), valid
        return self._proposals[key]


def refine(reference: Tensor, delta: Tensor, bbox_reparam: bool) -> Tensor:
    """The reference moved by delta [..., 4].

    With `bbox_reparam` in cxcywh: the center moves by delta times the size, and the size is multiplied by exp(delta).
    Otherwise both are logits and are added.
    """
    if not bbox_reparam:
        return reference + delta
    center, size = reference.split(2, dim=-1)
    shift, growth = delta.split(2, dim=-1)
    return torch.cat([shift * size + center, growth.exp() * size], dim=-1)


def _tokens(shapes: Shapes) -> int:
    return sum(height * width for height, width in shapes)


def _per_group(x: Tensor, layers: Sequence[nn.Module]) -> Tensor:
    """One linear layer per group: x [B, N, i] for all, or [G, B, N, i] -> [G, B, N, o].

    A single layer may have been replaced for deployment (`formats/torch/packed_linear`).
    """
    output: Tensor
    if len(layers) == 1:
        output = layers[0](x if x.ndim == 4 else x[None])
        return output
    linears = modules_of_type(layers, nn.Linear)
    weight = torch.stack([layer.weight for layer in linears])  # [G, o, i]
    bias = torch.stack([layer.bias for layer in linears])
    if x.ndim == 3:
        flat = x.flatten(0, 1)  # [B * N, i]
        together = linear(flat, weight.flatten(0, 1), bias.flatten()).unflatten(-1, bias.shape)
        output = together.transpose(0, 1).unflatten(1, x.shape[:2])
    else:
        # weight @ x, not x @ weight: the gradients then have the weights' layout, and need no copy per group
        together = torch.baddbmm(bias[..., None], weight, x.flatten(1, 2).transpose(1, 2))  # [G, o, B * N]
        output = together.transpose(1, 2).unflatten(1, x.shape[1:3])
    return output


def mlp_per_group(x: Tensor, heads: nn.ModuleList) -> Tensor:
    """One MLP per group, x [G, B, N, i] -> [G, B, N, o]."""
    mlps = modules_of_type(list(heads), MLP)
    for number, layers in enumerate(zip(*(mlp.layers for mlp in mlps), strict=True)):
        x = _per_group(x if number == 0 else F.relu(x), layers)
    return x


def _norm_per_group(x: Tensor, norms: Sequence[nn.LayerNorm]) -> Tensor:
    """One layer norm per group, x [G, B, N, D]: mean and variance do not depend on the group's weights."""
    if len(norms) == 1:
        output: Tensor = norms[0](x)
        return output
    weight = torch.stack([norm.weight for norm in norms])[:, None, None]
    bias = torch.stack([norm.bias for norm in norms])[:, None, None]
    return F.layer_norm(x, x.shape[-1:], eps=norms[0].eps) * weight + bias
