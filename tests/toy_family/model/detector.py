"""Backbone, one projection, learned queries that attend to the map.

Shape legend: B batch, Q queries, C classes, D width, S pixels of the map.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from rtdetr_tool.models.backbones.base import ImageBackbone
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.ops.structures import Predictions, Target


class ToyLayer(nn.Module):
    """Queries attend to the map."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.keys = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, content: Tensor, tokens: Tensor) -> Tensor:
        """content [B, Q, D], tokens [B, S, D] -> [B, Q, D]."""
        keys, values = self.keys(tokens).chunk(2, dim=-1)
        query, keys, values = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (self.query(content), keys, values)
        )
        attended = F.scaled_dot_product_attention(query, keys, values)
        return self.norm(content + attended.transpose(1, 2).flatten(2))


class ToyDecoder(nn.Module):
    """Learned queries, `num_layers` layers of cross attention, a class head and a box head."""

    def __init__(self, num_classes: int, width: int, num_queries: int, num_layers: int, num_heads: int) -> None:
        super().__init__()
        self.queries = nn.Embedding(num_queries, width)
        self.layers = nn.ModuleList(ToyLayer(width, num_heads) for _ in range(num_layers))
        self.class_embed = nn.Linear(width, num_classes)
        self.bbox_embed = nn.Linear(width, 4)

    def forward(self, tokens: Tensor) -> Predictions:
        """tokens [B, S, D]."""
        content = self.queries.weight.expand(tokens.shape[0], -1, -1)  # [B, Q, D]
        for layer in self.layers:
            content = layer(content, tokens)
        return Predictions(self.class_embed(content), self.bbox_embed(content).sigmoid())


class ToyDetr(Detector):
    """A detector from images to raw predictions."""

    decoder_layers = ("decoder.layers.",)

    def __init__(self, backbone: ImageBackbone, width: int, decoder: ToyDecoder) -> None:
        super().__init__(backbone, nn.Conv2d(backbone.channels[-1], width, 1), decoder)

    def forward(self, images: Tensor, targets: Sequence[Target] | None = None) -> Predictions:
        return self.decoder(self.features(images)[0].flatten(2).transpose(1, 2))

    def features(self, images: Tensor) -> list[Tensor]:
        return [self.encoder(self.backbone(images)[-1])]

    def deploy(self) -> ToyDetr:
        lean = copy.deepcopy(self).eval().requires_grad_(False)
        lean.backbone.fold_batch_norms()
        return lean
