"""D-FINE's decoder (arXiv:2410.13842): layers with gates, refinement of box distributions, localization quality.

The first layer predicts a box as RT-DETR does. Then each layer refines the distributions of how far the edges of that
box are moved. Submodules have the names of the public weights.

Shape legend: B batch, S tokens of all levels, Q queries (denoising first when present), D width, C classes, K layers,
R reg_max.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtdetr_tool.families.dfine.model.distribution import bin_offsets, mean_offsets, move_edges
from rtdetr_tool.families.dfine.model.layers import DFINELayer, LocalizationQuality
from rtdetr_tool.families.dfine.model.predictions import DFINEDenoising, DFINEPredictions
from rtdetr_tool.models.first_layers import FirstLayers
from rtdetr_tool.models.query_selection import QuerySelection, SelectedQueries
from rtdetr_tool.ops.boxes import inverse_sigmoid
from rtdetr_tool.ops.deformable import Memory, Shapes
from rtdetr_tool.ops.layers import MLP
from rtdetr_tool.ops.precision import at_least_float32
from rtdetr_tool.ops.structures import Predictions, Target


class Refined(NamedTuple):
    """Outputs of the layers: of all of them in training mode, otherwise only of the last one that runs."""

    logits: Tensor  # [K, B, Q, C]
    boxes: Tensor  # [K, B, Q, 4] cxcywh 0..1
    corners: Tensor  # [K, B, Q, 4 * (R + 1)]
    first_logits: Tensor  # [B, Q, C]
    first_boxes: Tensor  # [B, Q, 4]


class RefiningDecoder(FirstLayers):
    """The layers, with the refinement of the distributions between them.

    Layers after `eval_idx` only help in training, and may be wider by `layer_scale`.
    """

    offsets: Tensor

    def __init__(
        self,
        widths: Sequence[int],
        num_heads: int,
        dims_feedforward: Sequence[int],
        points: Sequence[int],
        eval_idx: int,
        reg_max: int,
        reg_scale: float,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DFINELayer(width, num_heads, inner, points) for width, inner in zip(widths, dims_feedforward, strict=True)
        )
        self.lqe_layers = nn.ModuleList(LocalizationQuality() for _ in widths)
        self.widths, self.eval_idx, self.reg_scale = tuple(widths), eval_idx, reg_scale
        self.register_buffer("offsets", bin_offsets(reg_max, reg_scale), persistent=False)

    def forward(
        self,
        content: Tensor,
        reference: Tensor,
        memory: Memory,
        shapes: Shapes,
        score_heads: nn.ModuleList,
        box_heads: nn.ModuleList,
        query_pos_head: nn.Module,
        first_box_head: nn.Module,
        attention_mask: Tensor | None,
    ) -> Refined:
        """reference [B, Q, 4] cxcywh as logits; the boxes that layers attend around carry no gradient."""
        reference = reference.sigmoid()
        initial = first_boxes = first_logits = reference
        corners: Tensor | None = None
        before: Tensor | None = None  # the content after the previous layer, without gradient
        logits, boxes, all_corners = [], [], []
        dtype = self.offsets.dtype  # of the weights
        count = self.count
        for index in range(count):
            position = query_pos_head(reference.to(dtype)).clamp(-10, 10)
            if self.widths[index] != position.shape[-1]:
                position = _widen(position, self.widths[index])
                assert isinstance(memory, Tensor)  # wide layers only run in training
                memory = _widen(memory, self.widths[index])
                content = _widen(content, self.widths[index])
                before = content.detach()
            content = self.layers[index](content, reference, memory, shapes, position, attention_mask)
            if index == 0:
                first_boxes = (at_least_float32(first_box_head(content)) + inverse_sigmoid(reference)).sigmoid()
                if self.training:
                    first_logits = score_heads[0](content)
                initial = first_boxes.detach()
            change = at_least_float32(box_heads[index](content if before is None else content + before))
            corners = change if corners is None else corners + change
            moved = move_edges(initial, mean_offsets(corners, self.offsets), self.reg_scale)
            if self.training or index == count - 1:
                quality = self.lqe_layers[index](corners.to(dtype))
                logits.append(score_heads[index](content) + quality)
                boxes.append(moved)
                all_corners.append(corners)
            reference, before = moved.detach(), content.detach()
        return Refined(torch.stack(logits), torch.stack(boxes), torch.stack(all_corners), first_logits, first_boxes)


def _widen(x: Tensor, width: int) -> Tensor:
    """Repeat channels up to `width`, [B, N, D] -> [B, N, width]; unchanged if they are as many."""
    return x if x.shape[-1] == width else F.interpolate(x, size=width)


class DFINEDecoder(QuerySelection):
    """Levels of the encoder in, `Predictions` out.

    Args:
        channels, num_denoising: as of `QuerySelection`; a level of `hidden_dim` channels is not projected.
        num_points: sampling points of a query on each level.
        eval_idx: layer whose prediction is returned in eval mode; negative counts from the end.
        layer_scale: width of the layers after `eval_idx`, relative to the others.
        reg_max, reg_scale: bins and scale of the distributions (see `distribution`).
    """

    decoder: RefiningDecoder

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        hidden_dim: int = 256,
        num_queries: int = 300,
        num_layers: int = 6,
        num_heads: int = 8,
        num_points: Sequence[int] = (3, 6, 3),
        dim_feedforward: int = 1024,
        eval_idx: int = -1,
        layer_scale: float = 1.0,
        reg_max: int = 32,
        reg_scale: float = 4.0,
        num_denoising: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
    ) -> None:
        super().__init__(channels, num_classes, hidden_dim, num_queries, num_denoising, label_noise, box_noise)
        eval_idx %= num_layers
        scales = [1.0 if index <= eval_idx else layer_scale for index in range(num_layers)]
        widths = [round(scale * hidden_dim) for scale in scales]
        inner = [round(scale * dim_feedforward) for scale in scales]
        self.decoder = RefiningDecoder(widths, num_heads, inner, num_points, eval_idx, reg_max, reg_scale)
        self.add_selection()
        self.dec_score_head = nn.ModuleList(nn.Linear(width, num_classes) for width in widths)
        self.pre_bbox_head = MLP(hidden_dim, hidden_dim, 4, 3)
        self.dec_bbox_head = nn.ModuleList(MLP(width, width, 4 * (reg_max + 1), 3) for width in widths)
        self.reset_selection(list(self.dec_score_head), [self.pre_bbox_head, *self.dec_bbox_head])

    def projection(self, inputs: int) -> nn.Module:
        return nn.Identity() if inputs == self.hidden_dim else super().projection(inputs)

    def forward(self, maps: Sequence[Tensor], targets: Sequence[Target] | None = None) -> Predictions:
        """maps [B, C, h, w] each."""
        queries = self.select(maps, targets)
        refined: Refined = self.decoder(
            queries.content,
            queries.reference,
            queries.memory,
            queries.shapes,
            self.dec_score_head,
            self.dec_bbox_head,
            self.query_pos_head,
            self.pre_bbox_head,
            queries.attention_mask,
        )
        if not self.training:
            return Predictions(refined.logits[-1], refined.boxes[-1])
        return _training_predictions(refined, queries)

    def lists_by_layer(self) -> list[nn.ModuleList]:
        return [*super().lists_by_layer(), self.decoder.lqe_layers]

    def keep_predicting_layers(self) -> None:
        """Remove, in place, what eval mode does not run."""
        used = self.decoder.eval_idx + 1
        for name in ("layers", "lqe_layers"):
            setattr(self.decoder, name, getattr(self.decoder, name)[:used])
        self.dec_score_head, self.dec_bbox_head = self.dec_score_head[:used], self.dec_bbox_head[:used]


def _training_predictions(refined: Refined, queries: SelectedQueries) -> DFINEPredictions:
    count = queries.denoising_count
    shared = vars(queries.training_predictions(refined.logits, refined.boxes))
    if shared["denoising"] is not None:
        shared["denoising"] = DFINEDenoising(
            **vars(shared["denoising"]),
            corners=refined.corners[:, :, :count],
            references=refined.first_boxes[:, :count].detach(),
            first_logits=refined.first_logits[:, :count],
            first_boxes=refined.first_boxes[:, :count],
        )
    return DFINEPredictions(
        **shared,
        layer_corners=refined.corners[:, :, count:],
        references=refined.first_boxes[:, count:].detach(),
        first_logits=refined.first_logits[:, count:],
        first_boxes=refined.first_boxes[:, count:],
    )
