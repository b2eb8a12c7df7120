"""The part of a decoder before its layers: projection of levels, selection of queries, denoising (arXiv:2304.08069).

RT-DETR's encoder ranks its tokens by their class scores, and the best ones become the decoder's queries. Submodules
have the names of the public weights.

Shape legend: B batch, S tokens of all levels, Q queries (denoising first when present), D hidden_dim, C classes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rtdetr_tool.models.denoising import DenoisingQueries, build_denoising
from rtdetr_tool.models.first_layers import FirstLayers
from rtdetr_tool.ops.anchors import square_anchors
from rtdetr_tool.ops.attention import additive_mask
from rtdetr_tool.ops.deformable import Memory, Shapes, flatten_levels, memory_of
from rtdetr_tool.ops.layers import MLP, modules_of_type
from rtdetr_tool.ops.precision import at_least_float32
from rtdetr_tool.ops.structures import DenoisingPredictions, Target, TrainingPredictions


class SelectedQueries(NamedTuple):
    """What the decoder's layers start from, and the predictions of the selected tokens."""

    content: Tensor  # [B, Q, D]
    reference: Tensor  # [B, Q, 4] cxcywh as logits
    memory: Memory  # [B, S, D], or the maps in a traced graph
    shapes: Shapes
    encoder_logits: Tensor  # [B, Q, C], without denoising queries
    encoder_boxes: Tensor  # [B, Q, 4] cxcywh 0..1, without denoising queries
    denoising: DenoisingQueries | None

    @property
    def attention_mask(self) -> Tensor | None:
        """[Q, Q], added to the scores of the attention among the queries."""
        return None if self.denoising is None else additive_mask(self.denoising.attention_mask, self.content.dtype)

    @property
    def denoising_count(self) -> int:
        """The number of denoising queries, which precede the others."""
        return 0 if self.denoising is None else self.denoising.labels.shape[1]

    def training_predictions(self, logits: Tensor, boxes: Tensor) -> TrainingPredictions:
        """The outputs of all decoder layers, [K, B, Q, C] and [K, B, Q, 4], without and with denoising."""
        count, denoising = self.denoising_count, None
        if self.denoising is not None:
            denoising = DenoisingPredictions(
                logits[:, :, :count],
                boxes[:, :, :count],
                self.denoising.positive_index,
                self.denoising.object_index,
                self.denoising.groups,
            )
        logits, boxes = logits[:, :, count:], boxes[:, :, count:]
        return TrainingPredictions(
            logits[-1],
            boxes[-1],
            layer_logits=logits,
            layer_boxes=boxes,
            encoder_logits=self.encoder_logits,
            encoder_boxes=self.encoder_boxes,
            denoising=denoising,
        )


class QuerySelection(nn.Module):
    """The base class of decoders whose queries are selected tokens.

    Subclasses register their layers, call `add_selection`, and register their heads.

    Args:
        channels: channels of each level.
        num_levels: levels that the decoder attends to; those beyond `channels` are computed from the coarsest one, each
            with half the size of the previous one.
        num_denoising: maximum number of denoising queries of one kind per image; 0 disables denoising.
    """

    decoder: FirstLayers
    dec_score_head: nn.ModuleList
    dec_bbox_head: nn.ModuleList

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        hidden_dim: int,
        num_queries: int,
        num_denoising: int,
        label_noise: float,
        box_noise: float,
        num_levels: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_queries, self.hidden_dim = num_classes, num_queries, hidden_dim
        self._all_queries = num_queries
        self.num_denoising, self.label_noise, self.box_noise = num_denoising, label_noise, box_noise
        extra = (num_levels or len(channels)) - len(channels)
        self.input_proj = nn.ModuleList(self.projection(inputs) for inputs in channels)
        self.input_proj.extend(self.downsampling(hidden_dim if i else channels[-1]) for i in range(extra))
        self._anchors: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}

    def projection(self, inputs: int) -> nn.Module:
        """From `inputs` to `hidden_dim` channels."""
        conv = nn.Conv2d(inputs, self.hidden_dim, 1, bias=False)
        return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(self.hidden_dim)))

    def downsampling(self, inputs: int) -> nn.Module:
        """The same with half the size."""
        conv = nn.Conv2d(inputs, self.hidden_dim, 3, 2, padding=1, bias=False)
        return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(self.hidden_dim)))

    def add_selection(self) -> None:
        """Register what selects the queries; after the layers, because optimizer states follow the order of weights."""
        width, num_classes = self.hidden_dim, self.num_classes
        if self.num_denoising > 0:
            self.denoising_class_embed = nn.Embedding(num_classes + 1, width, padding_idx=num_classes)
        self.query_pos_head = MLP(4, 2 * width, width, 2)
        self.enc_output = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.enc_score_head = nn.Linear(width, num_classes)
        self.enc_bbox_head = MLP(width, width, 4, 3)

    def reset_selection(self, score_heads: Sequence[nn.Module] = (), box_heads: Sequence[nn.Module] = ()) -> None:
        """Class scores start at 0.01 (focal loss prior), boxes at their reference; also those of other heads."""
        prior = -math.log((1 - 0.01) / 0.01)
        for score_head in modules_of_type([self.enc_score_head, *score_heads], nn.Linear):
            nn.init.constant_(score_head.bias, prior)
        for box_head in modules_of_type([self.enc_bbox_head, *box_heads], MLP):
            for weight in box_head.layers[-1].parameters():
                nn.init.zeros_(weight)
        for layer in modules_of_type([self.enc_output[0], *self.query_pos_head.layers], nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
        if self.num_denoising > 0:
            nn.init.normal_(self.denoising_class_embed.weight[:-1])

    def run_as(self, decoder_layers: int | None = None, num_queries: int | None = None) -> None:
        """Run the first decoder layers, and select fewer queries, from now on; None = all."""
        self.num_queries = num_queries or self._all_queries
        self.decoder.run_first(decoder_layers)

    def lists_by_layer(self) -> list[nn.ModuleList]:
        """The modules of each layer."""
        return [self.decoder.layers, self.dec_score_head, self.dec_bbox_head]

    def skipped(self) -> list[nn.Parameter]:
        """The parameters of the layers that `run_as` has excluded, and of their heads."""
        depth = self.decoder.depth
        if depth is None:
            return []
        return [weight for layers in self.lists_by_layer() for weight in layers[depth:].parameters()]

    def select(self, maps: Sequence[Tensor], targets: Sequence[Target] | None) -> SelectedQueries:
        """maps [B, C, h, w] each; in training mode, `targets` are denoised."""
        levels = self._project(maps)
        tokens, shapes = flatten_levels(levels)
        content, reference, encoder_logits, encoder_boxes = self._select_queries(tokens, shapes)
        denoising = None
        if self.training and targets is not None:
            denoising = build_denoising(
                targets, self.num_classes, content.shape[1], self.num_denoising, self.label_noise, self.box_noise
            )
            content, reference = self._prepend(denoising, content, reference)
        memory = memory_of(levels, tokens)
        return SelectedQueries(content, reference, memory, shapes, encoder_logits, encoder_boxes, denoising)

    def _project(self, maps: Sequence[Tensor]) -> list[Tensor]:
        levels = [project(level) for project, level in zip(self.input_proj, maps, strict=False)]
        for index in range(len(maps), len(self.input_proj)):
            levels.append(self.input_proj[index](maps[-1] if index == len(maps) else levels[-1]))
        return levels

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
        reference = at_least_float32(self.enc_bbox_head(content)) + anchor
        return content.detach(), reference.detach(), logits, reference.sigmoid()


def build_anchors(shapes: Shapes, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """One anchor per cell: logits of its cxcywh box [1, S, 4] (infinite where unused), whether it is used [1, S, 1]."""
    anchors, valid = square_anchors(shapes, device)
    return torch.log(anchors / (1 - anchors)).masked_fill(~valid, torch.inf), valid
