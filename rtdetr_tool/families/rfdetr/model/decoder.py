"""RF-DETR's decoder: learned queries attend to the image around the boxes that the first stage proposes.

LW-DETR (Chen et al. 2024, arXiv:2406.03459): in training there are several groups of queries that attend to the same
image but not to each other, so that each object has a positive query in every group (Group DETR, arXiv:2207.13085). At
inference only the first group is used. Submodules have the names of the public weights.

Shape legend: B batch, S tokens of all levels, G groups, Q queries of a group, D hidden_dim, C class logits,
K decoder layers, L levels, k tokens selected by the first stage, at most Q.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rtdetr_tool.families.rfdetr.model.layers import GroupDecoderLayer, merge_groups
from rtdetr_tool.families.rfdetr.model.queries import QuerySelection, Selected, refine
from rtdetr_tool.models.decoder_layer import DeformableAttention
from rtdetr_tool.ops.deformable import Memory, Shapes, flatten_levels, memory_of
from rtdetr_tool.ops.layers import MLP
from rtdetr_tool.ops.position import sine_of_boxes
from rtdetr_tool.ops.structures import Predictions, TrainingPredictions

_PRIOR = 0.01  # initial class score


class Decoded(NamedTuple):
    """Predictions, and the query content for additional heads (at inference of the last layer only)."""

    predictions: Predictions
    hidden: list[Tensor]  # [B, Q, D] of each layer
    proposed: Tensor  # [B, Q, D], the tokens selected by the first stage


class RFDETRDecoder(QuerySelection):
    """Levels of the projector in, `Decoded` out; in training with the queries of all groups, group by group.

    Args:
        num_classes: class logits. RF-DETR's own number does not count the background, so its heads have one more row.
        num_points: sampling points of a query on every level.
        group_detr: groups of `num_queries` queries in training.
        bbox_reparam: predict boxes relative to their reference; otherwise as logits, as in RT-DETR.
        lite_refpoint_refine: every layer attends around, and predicts relative to, the first reference; otherwise each
            layer uses the box of the previous one.
        layer: builds a decoder layer from `hidden_dim, self_heads, dim_feedforward, dropout, "relu", attention`.
    """

    def __init__(
        self,
        num_classes: int,
        levels: int = 1,
        hidden_dim: int = 256,
        num_queries: int = 300,
        num_layers: int = 2,
        self_heads: int = 8,
        cross_heads: int = 16,
        num_points: int = 2,
        dim_feedforward: int = 2048,
        dropout: float = 0.0,
        group_detr: int = 13,
        bbox_reparam: bool = True,
        lite_refpoint_refine: bool = True,
        layer: Callable[..., nn.Module] = GroupDecoderLayer,
    ) -> None:
        super().__init__(hidden_dim, num_classes, group_detr, bbox_reparam)
        self.num_classes, self.num_queries, self.hidden_dim = num_classes, num_queries, hidden_dim
        self._all_queries, self.depth = num_queries, num_layers  # the latter: layers to run
        self.lite_refpoint_refine = lite_refpoint_refine
        self.layers = nn.ModuleList(
            layer(
                hidden_dim, self_heads, dim_feedforward, dropout, "relu",
                DeformableAttention(hidden_dim, cross_heads, [num_points] * levels),
            )
            for _ in range(num_layers)
        )  # fmt: skip
        self.norm = nn.LayerNorm(hidden_dim)
        self.ref_point_head = MLP(2 * hidden_dim, hidden_dim, hidden_dim, 2)
        self.class_embed = nn.Linear(hidden_dim, num_classes)
        self.bbox_embed = MLP(hidden_dim, hidden_dim, 4, 3)
        self.refpoint_embed = nn.Embedding(num_queries * group_detr, 4)
        self.query_feat = nn.Embedding(num_queries * group_detr, hidden_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Class scores start at 0.01 (focal loss prior), boxes at their reference; all heads of a kind start equal."""
        for part in (self.enc_output, self.layers, self.ref_point_head):
            for name, weight in part.named_parameters():
                if weight.ndim > 1 and "sampling_offsets" not in name and "attention_weights" not in name:
                    nn.init.xavier_uniform_(weight)
        nn.init.constant_(self.class_embed.bias, -math.log((1 - _PRIOR) / _PRIOR))
        for weight in self.bbox_embed.layers[-1].parameters():
            nn.init.zeros_(weight)
        nn.init.zeros_(self.refpoint_embed.weight)
        for head in self.enc_out_class_embed:
            head.load_state_dict(self.class_embed.state_dict())
        for head in self.enc_out_bbox_embed:
            head.load_state_dict(self.bbox_embed.state_dict())

    def keep_groups(self, count: int) -> None:
        """Remove all groups except the first `count`, in place. One is enough for inference."""
        super().keep_groups(count)
        for name in ("refpoint_embed", "query_feat"):
            rows = getattr(self, name).weight.detach()[: count * self._all_queries].clone()
            setattr(self, name, nn.Embedding.from_pretrained(rows, freeze=False))

    def run_as(self, decoder_layers: int | None = None, num_queries: int | None = None) -> None:
        """Run the first layers, and the first queries of each group, from now on; None = all."""
        self.depth = decoder_layers or len(self.layers)
        self.num_queries = num_queries or self._all_queries

    def skipped(self) -> list[nn.Parameter]:
        """The parameters of the layers that `run_as` has excluded."""
        return list(self.layers[self.depth :].parameters())

    def resize_weights(self, weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """The tensors without extra groups and layers, and without extra queries in each group."""
        groups_in_file = count_groups(weights, f"{prefix}enc_output.")
        kept = {name: t for name, t in weights.items() if _group_of(name, prefix) < self.groups}
        kept = without_later(kept, f"{prefix}layers.", len(self.layers))
        for name in (f"{prefix}refpoint_embed.weight", f"{prefix}query_feat.weight"):
            if groups_in_file and name in kept and len(kept[name]) % groups_in_file == 0:
                table = kept[name].unflatten(0, (groups_in_file, -1))
                kept[name] = table[: self.groups, : self._all_queries].flatten(0, 1)
        return kept

    def forward(self, maps: Sequence[Tensor], attended: Sequence[Tensor] | None = None) -> Decoded:
        """maps [B, D, h, w], one per level; `attended` are those that the layers attend to, if others."""
        tokens, shapes = flatten_levels(maps)
        selected = self.select(tokens, shapes, self.num_queries)
        content, reference = self._queries(selected)
        memory = memory_of(maps, tokens) if attended is None else memory_of(attended, flatten_levels(attended)[0])
        hidden, references = self._decode(content, reference, memory, shapes)
        return Decoded(self._predict(hidden, references, selected), hidden, merge_groups(selected.tokens))

    def _queries(self, selected: Selected) -> tuple[Tensor, Tensor]:
        """Content [B, G * Q, D] and reference [B, G * Q, 4] of every query.

        Only the position of a query comes from the image, its content is learned. If the image has fewer tokens than a
        group has queries, the references of the remaining queries are learned too.
        """
        groups, batch, count, _ = selected.references.shape
        learned = self._rows(self.refpoint_embed, groups)[:, None].expand(-1, batch, -1, -1)  # [G, B, Q, 4]
        reference = refine(selected.references.detach(), learned[:, :, :count].float(), self.bbox_reparam)
        if count < self.num_queries:
            reference = torch.cat([reference, learned[:, :, count:].to(reference.dtype)], dim=2)
        content = self._rows(self.query_feat, groups).flatten(0, 1)
        return content.expand(batch, -1, -1), merge_groups(reference)

    def _rows(self, table: nn.Embedding, groups: int) -> Tensor:
        """The rows of the first queries of each group, [G, Q, ...]."""
        rows: Tensor = table.weight[: groups * self._all_queries].unflatten(0, (groups, -1))
        return rows if self.num_queries == self._all_queries else rows[:, : self.num_queries]

    def _decode(
        self, content: Tensor, reference: Tensor, memory: Memory, shapes: Shapes
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Normalized content and reference of each layer; at inference of the last one only."""
        groups = self.groups if self.training else 1
        hidden, references = [], []
        for number, layer in enumerate(self.layers[: self.depth]):
            if number == 0 or not self.lite_refpoint_refine:
                box = reference.detach() if number else reference
                box = box if self.bbox_reparam else box.sigmoid()
                position = self._position(box, content.dtype)
            content = layer(content, box, memory, shapes, position, groups)
            if self.training or number == self.depth - 1:
                hidden.append(self.norm(content))
                references.append(reference)
            if not self.lite_refpoint_refine and number < self.depth - 1:
                reference = refine(reference.detach() if number else reference, self._delta(content), self.bbox_reparam)
        return hidden, references

    def _position(self, box: Tensor, dtype: torch.dtype) -> Tensor:
        """Position embedding [B, N, D] of boxes [B, N, 4] cxcywh 0..1."""
        position: Tensor = self.ref_point_head(sine_of_boxes(box, self.hidden_dim // 2).to(dtype))
        return position

    def _delta(self, content: Tensor) -> Tensor:
        delta: Tensor = self.bbox_embed(content).float()
        return delta

    def _predict(self, hidden: list[Tensor], references: list[Tensor], selected: Selected) -> Predictions:
        logits = self.class_embed(torch.stack(hidden) if self.training else hidden[-1][None])
        deltas = self._delta(torch.stack(hidden) if self.training else hidden[-1][None])
        boxes = self._boxes(refine(torch.stack(references), deltas, self.bbox_reparam))
        if not self.training:
            return Predictions(logits[-1], boxes[-1])
        proposed = merge_groups(self._boxes(selected.references))
        return TrainingPredictions(
            logits[-1],
            boxes[-1],
            layer_logits=logits,
            layer_boxes=boxes,
            encoder_logits=merge_groups(selected.logits),
            encoder_boxes=proposed,
        )

    def _boxes(self, values: Tensor) -> Tensor:
        return values if self.bbox_reparam else values.sigmoid()


def _group_of(name: str, prefix: str) -> int:
    """The group of the head that this tensor belongs to, -1 for all other tensors."""
    parts = name.removeprefix(prefix).split(".")
    return int(parts[1]) if name.startswith(f"{prefix}enc_out") else -1


def count_groups(names: Iterable[str], start: str) -> int:
    """The number of different numbers that follow `start`."""
    return len({name[len(start) :].split(".")[0] for name in names if name.startswith(start)})


def without_later(weights: Mapping[str, Tensor], start: str, count: int) -> dict[str, Tensor]:
    """The tensors without those of the list that `start` names from its item `count` on."""
    return {n: t for n, t in weights.items() if not n.startswith(start) or int(n[len(start) :].split(".")[0]) < count}
