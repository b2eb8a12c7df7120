"""RF-DETR's decoder with keypoints: every object query has a query for each keypoint of every class.

A keypoint has 8 channels: x and y, the logits of being findable (annotated at all) and visible (not hidden), the
precision matrix of its location as log l11, l21 and log l22 of its Cholesky factor, and what it adds to the logit of
its class. Classes have different numbers of keypoints; predictions are padded to the largest.

Shape legend: B batch, G groups, Q queries of a group, K keypoints of all classes, P most keypoints of a class, C class
logits, C' classes with a number of keypoints, D hidden_dim, d width of keypoints, L decoder layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtdetr_tool.families.rfdetr.model.decoder import Decoded, RFDETRDecoder
from rtdetr_tool.families.rfdetr.model.keypoint_layers import (
    KeypointContext,
    KeypointDecoderLayer,
    KeypointQueries,
    active_keypoints,
    blocked_pairs,
)
from rtdetr_tool.families.rfdetr.model.layers import merge_groups
from rtdetr_tool.families.rfdetr.model.queries import Selected, mlp_per_group
from rtdetr_tool.ops.deformable import flatten_levels
from rtdetr_tool.ops.layers import MLP, modules_of_type
from rtdetr_tool.ops.structures import KEYPOINT_CHANNELS, KeypointPredictions, Predictions, TrainingPredictions

_CLASS = 7  # the channel that is added to the class logit
_PRECISION = slice(4, 7)
# Tensors with a row per keypoint.
_ROWS = ("keypoint_pos_embed", "keypoint_query_initializer.queries", "keypoint_query_initializer_enc.queries")
_ACTIVE = "keypoint_active"


class KeypointDecoder(RFDETRDecoder):
    """`RFDETRDecoder` with keypoints in its predictions.

    Args:
        counts: number of keypoints of each class index; classes beyond have none.
        downscale: hidden_dim relative to the width of keypoints.
        attends_image, attends_objects: see `KeypointDecoderLayer`.
        trace_alpha: how much the uncertainty of an object's keypoints reduces its score.
        arguments: of `RFDETRDecoder`, with `bbox_reparam` and `lite_refpoint_refine`.
    """

    _blocked: Tensor | None
    _slots: Tensor

    def __init__(
        self,
        num_classes: int,
        counts: Sequence[int],
        downscale: int = 1,
        attends_image: bool = True,
        attends_objects: bool = False,
        trace_alpha: float = 0.2,
        **arguments: Any,
    ) -> None:
        layer = partial(
            KeypointDecoderLayer, downscale=downscale, attends_image=attends_image, attends_objects=attends_objects
        )
        super().__init__(num_classes, layer=layer, **arguments)
        self.counts, self.trace_alpha = tuple(counts), trace_alpha
        total, dim = sum(self.counts), self.hidden_dim
        width = dim // downscale
        self.keypoint_pos_embed = nn.Parameter(torch.randn(total, width))
        self.keypoint_query_initializer = KeypointQueries(dim, total, width)
        self.keypoint_query_initializer_enc = KeypointQueries(dim, total, width)
        self.keypoint_embed = MLP(width, width, KEYPOINT_CHANNELS, 3)
        self.enc_out_keypoint_embed = nn.ModuleList(MLP(width, width, KEYPOINT_CHANNELS, 3) for _ in range(self.groups))
        self.register_buffer(_ACTIVE, active_keypoints(self.counts))
        several = sum(count > 0 for count in self.counts) > 1
        self.register_buffer("_blocked", blocked_pairs(self.counts) if several else None, persistent=False)
        self.register_buffer("_slots", _slots(self.counts), persistent=False)
        self.reset_keypoints()

    def reset_keypoints(self) -> None:
        """Keypoints start at the center of the reference box, with unit precision; all heads start equal."""
        for part in (self.keypoint_query_initializer, self.keypoint_query_initializer_enc):
            for weight in part.parameters():
                if weight.ndim > 1:
                    nn.init.xavier_uniform_(weight)
        nn.init.xavier_uniform_(self.keypoint_pos_embed)
        for weight in self.keypoint_embed.layers[-1].parameters():
            nn.init.zeros_(weight)
        for head in self.enc_out_keypoint_embed:
            head.load_state_dict(self.keypoint_embed.state_dict())

    def keep_groups(self, count: int) -> None:
        super().keep_groups(count)
        del self.enc_out_keypoint_embed[count:]

    def resize_weights(self, weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """As for boxes; a file with another number of keypoints gives its first ones, repeated if it has fewer."""
        kept = super().resize_weights(weights, prefix)
        total = sum(self.counts)
        for name in (prefix + row for row in _ROWS):
            if name in kept and 0 < len(kept[name]) != total:
                repeats = -(-total // len(kept[name]))
                kept[name] = kept[name].repeat(repeats, 1)[:total]
        if f"{prefix}{_ACTIVE}" in kept:
            kept[f"{prefix}{_ACTIVE}"] = active_keypoints(self.counts)
        return kept

    @torch.no_grad()
    def forget_precision(self) -> None:
        """Unit precision of all keypoints, as for random weights: that of other data does not hold for new data."""
        for head in modules_of_type([self.keypoint_embed, *self.enc_out_keypoint_embed], MLP):
            for weight in head.layers[-1].parameters():
                weight[_PRECISION].zero_()

    def forward(
        self, maps: Sequence[Tensor], attended: Sequence[Tensor] | None = None, keypoints_only: bool = False
    ) -> Decoded:
        """As for boxes; with `keypoints_only`, only keypoints attend to `attended`, objects to `maps`."""
        memory, shapes = flatten_levels(maps)
        selected = self.select(memory, shapes, self.num_queries)
        other = memory if attended is None else flatten_levels(attended)[0]
        memory = memory if keypoints_only else other
        context = KeypointContext(self.keypoint_pos_embed, self._blocked, other)
        content, reference = self._queries(selected)
        position = self._position(reference, content.dtype)
        keypoints = self.keypoint_query_initializer(content)
        groups = self.groups if self.training else 1
        hidden, points = [], []
        for number, layer in enumerate(modules_of_type(self.layers[: self.depth], KeypointDecoderLayer)):
            content = layer(content, reference, memory, shapes, position, groups)
            content, keypoints = layer.update_keypoints(content, keypoints, reference, shapes, position, context)
            if self.training or number == self.depth - 1:
                hidden.append(self.norm(content))
                points.append(keypoints)
        predictions = self._predict(hidden, [reference] * len(hidden), selected)
        predictions = self._with_keypoints(predictions, torch.stack(points), reference, selected)
        return Decoded(predictions, hidden, merge_groups(selected.tokens))

    def _with_keypoints(
        self, predictions: Predictions, points: Tensor, reference: Tensor, selected: Selected
    ) -> Predictions:
        """The predictions with keypoints of points [L, B, G * Q, K, d], whose classes they also support."""
        keypoints_by_layer = self._padded(self._located(self.keypoint_embed(points), reference))
        boost = self._class_boost(keypoints_by_layer)
        if not isinstance(predictions, TrainingPredictions):
            keypoints = self._predictions(keypoints_by_layer[-1])
            return replace(predictions, logits=predictions.logits + boost[-1], keypoints=keypoints)
        tokens = self.keypoint_query_initializer_enc(selected.tokens)  # [G, B, k, K, d]
        deltas = mlp_per_group(tokens.flatten(2, 3), self.enc_out_keypoint_embed).view(*tokens.shape[:4], -1)
        proposed = self._padded(merge_groups(self._located(deltas, selected.references)))
        layers = self._predictions(keypoints_by_layer)
        return replace(
            predictions,
            logits=predictions.logits + boost[-1],
            layer_logits=predictions.layer_logits + boost,
            encoder_logits=predictions.encoder_logits + self._class_boost(proposed),
            keypoints=replace(layers, values=layers.values[-1]),
            layer_keypoints=layers,
            encoder_keypoints=self._predictions(proposed),
        )

    def _located(self, deltas: Tensor, reference: Tensor) -> Tensor:
        """Head outputs [..., K, 8] with x and y relative to the input instead of the reference [..., 4]."""
        deltas = deltas.float()
        if self.training:  # one overflow must not reach the gradients of the boxes
            deltas = torch.nan_to_num(deltas, nan=0.0, posinf=0.0, neginf=0.0)
        locations = deltas[..., :2] * reference[..., None, 2:] + reference[..., None, :2]
        return torch.cat([locations, deltas[..., 2:]], dim=-1)

    def _padded(self, values: Tensor) -> Tensor:
        """Keypoints [..., K, 8] with the same number of each class, [..., C' * P, 8]; 0 where a class has none."""
        if len(self._slots) == values.shape[-2]:
            return values
        nothing = torch.zeros_like(values[..., :1, :])
        return torch.cat([values, nothing], dim=-2).index_select(-2, self._slots)

    def _class_boost(self, values: Tensor) -> Tensor:
        """What the keypoints [..., C' * P, 8] add to the class logits, [..., C]."""
        boost = values[..., _CLASS].unflatten(-1, (len(self.counts), -1)).sum(-1)
        return F.pad(boost, (0, self.num_classes - len(self.counts)))

    def _predictions(self, values: Tensor) -> KeypointPredictions:
        return KeypointPredictions(values, self.counts, self.trace_alpha)


def _slots(counts: Sequence[int]) -> Tensor:
    """For each of C' * P padded keypoints its index among all K, or K if its class does not have it."""
    active = active_keypoints(counts).flatten()
    return torch.where(active, active.cumsum(0) - 1, active.sum())
