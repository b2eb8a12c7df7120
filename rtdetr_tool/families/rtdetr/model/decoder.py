"""RT-DETR's decoder: query selection, decoder layers, iterative box refinement (arXiv:2304.08069).

RT-DETRv2 (arXiv:2407.17140) only differs in the sampling: `num_points`, `cross_attn_method`, `offset_scale`.
Submodules have the names of the public weights.

Shape legend: B batch, S tokens of all levels, Q queries (denoising first when present), D hidden_dim, C classes,
K decoder layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from rtdetr_tool.models.decoder_layer import DecoderLayer, DeformableAttention, points_per_level
from rtdetr_tool.models.first_layers import FirstLayers
from rtdetr_tool.models.query_selection import QuerySelection
from rtdetr_tool.ops.boxes import inverse_sigmoid
from rtdetr_tool.ops.deformable import Memory, Shapes
from rtdetr_tool.ops.layers import MLP
from rtdetr_tool.ops.structures import Predictions, Target


class RTDETRDecoder(QuerySelection):
    """Levels of the encoder in, `Predictions` out.

    Args:
        channels, num_levels, num_denoising: as of `QuerySelection`.
        num_points: sampling points of a query, one number for all levels or one per level.
        cross_attn_method: `default` samples bilinearly, `discrete` at whole pixels (RT-DETRv2).
        offset_scale: share of a side of the query's box that an offset of as many units as the level has points spans.
        eval_idx: layer whose prediction is returned in eval mode; negative counts from the end.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        hidden_dim: int = 256,
        num_queries: int = 300,
        num_layers: int = 6,
        num_heads: int = 8,
        num_points: int | Sequence[int] = 4,
        cross_attn_method: str = "default",
        offset_scale: float = 0.5,
        dim_feedforward: int = 1024,
        dropout: float = 0.0,
        eval_idx: int = -1,
        num_denoising: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
        act: str = "relu",
        num_levels: int | None = None,
    ) -> None:
        super().__init__(
            channels, num_classes, hidden_dim, num_queries, num_denoising, label_noise, box_noise, num_levels
        )
        points = points_per_level(num_points, len(self.input_proj))
        self.decoder = TransformerDecoder(
            (
                DecoderLayer(
                    hidden_dim,
                    num_heads,
                    dim_feedforward,
                    dropout,
                    act,
                    DeformableAttention(hidden_dim, num_heads, points, cross_attn_method, offset_scale),
                )
                for _ in range(num_layers)
            ),
            eval_idx,
        )
        self.add_selection()
        self.dec_score_head = nn.ModuleList(nn.Linear(hidden_dim, num_classes) for _ in range(num_layers))
        self.dec_bbox_head = nn.ModuleList(MLP(hidden_dim, hidden_dim, 4, 3) for _ in range(num_layers))
        self.reset_selection(list(self.dec_score_head), list(self.dec_bbox_head))

    def forward(
        self, maps: Sequence[Tensor], targets: Sequence[Target] | None = None, summary: Tensor | None = None
    ) -> Predictions:
        """maps [B, C, h, w] each; `summary` of the image is for decoders that attend to it."""
        queries = self.select(maps, targets)
        logits, boxes = self.decoder(
            queries.content,
            queries.reference,
            queries.memory,
            queries.shapes,
            self.dec_score_head,
            self.dec_bbox_head,
            self.query_pos_head,
            queries.attention_mask,
            summary,
        )
        if not self.training:
            return Predictions(logits[-1], boxes[-1])
        return queries.training_predictions(logits, boxes)


class TransformerDecoder(FirstLayers):
    """The decoder layers with box refinement between them."""

    def __init__(self, layers: Iterable[DecoderLayer], eval_idx: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.eval_idx = eval_idx % len(self.layers)

    def forward(
        self,
        content: Tensor,
        reference: Tensor,
        memory: Memory,
        shapes: Shapes,
        score_heads: nn.ModuleList,
        box_heads: nn.ModuleList,
        query_pos_head: nn.Module,
        attention_mask: Tensor | None,
        summary: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits [K, B, Q, C] and boxes [K, B, Q, 4] of all layers in training mode, otherwise only of the last one
        that runs (`FirstLayers`).

        The reference that a layer attends around carries no gradient, but the box it predicts passes one to the box
        head of the layer before (look forward twice, DINO, arXiv:2203.03605; so do the official code and TAO).
        """
        reference = previous = reference.sigmoid()
        all_logits, all_boxes = [], []
        count = self.count
        for index in range(count):
            content = self.attend(index, content, reference, memory, shapes, query_pos_head, attention_mask, summary)
            delta = box_heads[index](content).float()
            start = inverse_sigmoid(previous)  # of the reference, too, which is the same without its gradient
            if self.training or index == count - 1:
                all_logits.append(score_heads[index](content))
                all_boxes.append((delta + start).sigmoid())
            if index + 1 < count:
                previous = (delta + start.detach()).sigmoid()
                reference = previous.detach()
        return torch.stack(all_logits), torch.stack(all_boxes)

    def attend(
        self,
        index: int,
        content: Tensor,
        reference: Tensor,
        memory: Memory,
        shapes: Shapes,
        query_pos_head: nn.Module,
        attention_mask: Tensor | None,
        summary: Tensor | None,
    ) -> Tensor:
        """Run one layer; subclasses may add inputs, such as the summary of the image."""
        layer, position = self.layers[index], query_pos_head(reference)
        output: Tensor = layer(content, reference, memory, shapes, position, attention_mask)
        return output
