"""RT-DETR's decoder: query selection, decoder layers, iterative box refinement (arXiv:2304.08069).

RT-DETRv2 (arXiv:2407.17140) only differs in the sampling: `num_points`, `cross_attn_method`, `offset_scale`.
Submodules have the names of the public weights.

Shape legend: B batch, S tokens of all levels, Q queries (denoising first when present), D hidden_dim, C classes,
K decoder layers.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from rtdetr_tool.families.rtdetr.model.denoising import DenoisingQueries, build_denoising
from rtdetr_tool.models.decoder_layer import DecoderLayer, DeformableAttention, points_per_level
from rtdetr_tool.ops.anchors import square_anchors
from rtdetr_tool.ops.boxes import inverse_sigmoid
from rtdetr_tool.ops.deformable import Shapes
from rtdetr_tool.ops.layers import MLP, modules_of_type
from rtdetr_tool.ops.structures import DenoisingPredictions, Predictions, Target, TrainingPredictions


class RTDETRDecoder(nn.Module):
    """Levels of the encoder in, `Predictions` out.

    Args:
        channels: channels of each level.
        num_levels: levels that the decoder attends to; those beyond `channels` are computed from the coarsest one, each
            with half the size of the previous one.
        num_points: sampling points of a query, one number for all levels or one per level.
        cross_attn_method: `default` samples bilinearly, `discrete` at whole pixels (RT-DETRv2).
        offset_scale: share of a side of the query's box that an offset of as many units as the level has points spans.
        eval_idx: layer whose prediction is returned in eval mode; negative counts from the end.
        num_denoising: maximum number of denoising queries of one kind per image; 0 disables denoising.
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
        super().__init__()
        self.num_classes, self.num_queries, self.hidden_dim = num_classes, num_queries, hidden_dim
        self.num_denoising, self.label_noise, self.box_noise = num_denoising, label_noise, box_noise
        self.input_proj = nn.ModuleList(
            nn.Sequential(
                OrderedDict(conv=nn.Conv2d(inputs, hidden_dim, 1, bias=False), norm=nn.BatchNorm2d(hidden_dim))
            )
            for inputs in channels
        )
        extra = (num_levels or len(channels)) - len(channels)
        self.input_proj.extend(
            nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(hidden_dim if i else channels[-1], hidden_dim, 3, 2, padding=1, bias=False),
                    norm=nn.BatchNorm2d(hidden_dim),
                )
            )
            for i in range(extra)
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
        if num_denoising > 0:
            self.denoising_class_embed = nn.Embedding(num_classes + 1, hidden_dim, padding_idx=num_classes)
        self.query_pos_head = MLP(4, 2 * hidden_dim, hidden_dim, 2)
        self.enc_output = nn.Sequential(nn.Linear(hidden_dim, hidden_dim), nn.LayerNorm(hidden_dim))
        self.enc_score_head = nn.Linear(hidden_dim, num_classes)
        self.enc_bbox_head = MLP(hidden_dim, hidden_dim, 4, 3)
        self.dec_score_head = nn.ModuleList(nn.Linear(hidden_dim, num_classes) for _ in range(num_layers))
        self.dec_bbox_head = nn.ModuleList(MLP(hidden_dim, hidden_dim, 4, 3) for _ in range(num_layers))
        self._anchors: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Class scores start at 0.01 (focal loss prior), boxes at their reference."""
        prior = -math.log((1 - 0.01) / 0.01)
        for score_head in modules_of_type([self.enc_score_head, *self.dec_score_head], nn.Linear):
            nn.init.constant_(score_head.bias, prior)
        for box_head in modules_of_type([self.enc_bbox_head, *self.dec_bbox_head], MLP):
            for weight in box_head.layers[-1].parameters():
                nn.init.zeros_(weight)
        for layer in modules_of_type([self.enc_output[0], *self.query_pos_head.layers], nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
        if self.num_denoising > 0:
            nn.init.normal_(self.denoising_class_embed.weight[:-1])

    def forward(
        self, maps: Sequence[Tensor], targets: Sequence[Target] | None = None, summary: Tensor | None = None
    ) -> Predictions:
        """maps [B, C, h, w] each; `summary` of the image is for decoders that attend to it."""
        memory, shapes = self._flatten(self._project(maps))
        content, reference, encoder_logits, encoder_boxes = self._select_queries(memory, shapes)
        denoising = None
        if self.training and targets is not None:
            denoising = build_denoising(
                targets, self.num_classes, content.shape[1], self.num_denoising, self.label_noise, self.box_noise
            )
            content, reference = self._prepend(denoising, content, reference)
        logits, boxes = self.decoder(
            content,
            reference,
            memory,
            shapes,
            self.dec_score_head,
            self.dec_bbox_head,
            self.query_pos_head,
            None if denoising is None else denoising.attention_mask,
            summary,
        )
        if not self.training:
            return Predictions(logits[-1], boxes[-1])
        return _training_predictions(logits, boxes, encoder_logits, encoder_boxes, denoising)

    def _project(self, maps: Sequence[Tensor]) -> list[Tensor]:
        levels = [project(level) for project, level in zip(self.input_proj, maps, strict=False)]
        for index in range(len(maps), len(self.input_proj)):
            levels.append(self.input_proj[index](maps[-1] if index == len(maps) else levels[-1]))
        return levels

    @staticmethod
    def _flatten(levels: Sequence[Tensor]) -> tuple[Tensor, Shapes]:
        shapes = [(int(level.shape[-2]), int(level.shape[-1])) for level in levels]
        return torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1), shapes

    def _prepend(self, denoising: DenoisingQueries | None, content: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        if denoising is None:
            if self.num_denoising > 0:  # in a batch without objects, DDP still requires a gradient of every parameter
                content = content + 0.0 * self.denoising_class_embed.weight.sum()
            return content, reference
        embedded = self.denoising_class_embed(denoising.labels)
        return (
            torch.cat([embedded.to(content.dtype), content], dim=1),
            torch.cat([denoising.boxes.to(reference.dtype), reference], dim=1),
        )

    def anchors(self, shapes: Shapes, device: torch.device) -> tuple[Tensor, Tensor]:
        """Box logits [1, S, 4] of the anchor at each cell, and which cells are used [1, S, 1]."""
        key = (*shapes, device)
        if key not in self._anchors:
            with torch.inference_mode(False):  # training must be able to use anchors cached during inference
                self._anchors[key] = build_anchors(shapes, device)
        return self._anchors[key]

    def _select_queries(self, memory: Tensor, shapes: Shapes) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Select the tokens with the best class scores: content [B, Q, D], box logits, class logits, boxes."""
        anchors, valid = self.anchors(shapes, memory.device)
        tokens = self.enc_output(memory * valid.to(memory.dtype))
        scores = self.enc_score_head(tokens)  # [B, S, C]
        count = min(self.num_queries, sum(height * width for height, width in shapes))
        best = scores.amax(-1).topk(count, dim=1).indices[..., None]  # [B, Q, 1]
        content = tokens.gather(1, best.expand(-1, -1, tokens.shape[-1]))
        logits = scores.gather(1, best.expand(-1, -1, scores.shape[-1]))
        anchor = anchors.expand(scores.shape[0], -1, -1).gather(1, best.expand(-1, -1, 4))
        reference = self.enc_bbox_head(content).float() + anchor
        return content.detach(), reference.detach(), logits, reference.sigmoid()


def build_anchors(shapes: Shapes, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """One anchor per cell: logits of its cxcywh box [1, S, 4] (infinite where unused), whether it is used [1, S, 1]."""
    anchors, valid = square_anchors(shapes, device)
    return torch.log(anchors / (1 - anchors)).masked_fill(~valid, torch.inf), valid


def _training_predictions(
    logits: Tensor, boxes: Tensor, encoder_logits: Tensor, encoder_boxes: Tensor, denoising: DenoisingQueries | None
) -> Predictions:
    noisy = None
    if denoising is not None:
        count = denoising.labels.shape[1]
        noisy = DenoisingPredictions(
            logits[:, :, :count],
            boxes[:, :, :count],
            denoising.positive_index,
            denoising.object_index,
            denoising.groups,
        )
        logits, boxes = logits[:, :, count:], boxes[:, :, count:]
    return TrainingPredictions(
        logits[-1],
        boxes[-1],
        layer_logits=logits,
        layer_boxes=boxes,
        encoder_logits=encoder_logits,
        encoder_boxes=encoder_boxes,
        denoising=noisy,
    )


class TransformerDecoder(nn.Module):
    """The decoder layers with box refinement between them."""

    def __init__(self, layers: Iterable[DecoderLayer], eval_idx: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.eval_idx = eval_idx % len(self.layers)

    def forward(
        self,
        content: Tensor,
        reference: Tensor,
        memory: Tensor,
        shapes: Shapes,
        score_heads: nn.ModuleList,
        box_heads: nn.ModuleList,
        query_pos_head: nn.Module,
        attention_mask: Tensor | None,
        summary: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits [K, B, Q, C] and boxes [K, B, Q, 4] of all layers in training mode, otherwise only of `eval_idx`.

        The reference that a layer attends around carries no gradient, but the box it predicts passes one to the box
        head of the layer before (look forward twice, DINO, arXiv:2203.03605; so do the official code and TAO).
        """
        reference = previous = reference.sigmoid()
        all_logits, all_boxes = [], []
        for index in range(len(self.layers) if self.training else self.eval_idx + 1):
            content = self.attend(index, content, reference, memory, shapes, query_pos_head, attention_mask, summary)
            delta = box_heads[index](content).float()
            start = inverse_sigmoid(previous)  # of the reference, too, which is the same without its gradient
            if self.training or index == self.eval_idx:
                all_logits.append(score_heads[index](content))
                all_boxes.append((delta + start).sigmoid())
            previous = (delta + start.detach()).sigmoid()
            reference = previous.detach()
        return torch.stack(all_logits), torch.stack(all_boxes)

    def attend(
        self,
        index: int,
        content: Tensor,
        reference: Tensor,
        memory: Tensor,
        shapes: Shapes,
        query_pos_head: nn.Module,
        attention_mask: Tensor | None,
        summary: Tensor | None,
    ) -> Tensor:
        """Run one layer; subclasses may add inputs, such as the summary of the image."""
        layer, position = self.layers[index], query_pos_head(reference)
        output: Tensor = layer(content, reference, memory, shapes, position, attention_mask)
        return output
