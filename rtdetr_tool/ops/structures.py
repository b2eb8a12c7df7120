"""The vocabulary that data, models, losses and metrics share.

Shape legend: B batch, N objects of one image, Q queries, C classes, L decoder layers, D denoising queries.
Boxes always say format and unit: `cxcywh 0..1` is relative to the network's input (padding included),
`xyxy pixels` is absolute in the original image.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


class _Movable:
    """Moves every tensor field of a dataclass; other fields stay as they are."""

    def _map(self, function):
        def visit(value: Any) -> Any:
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, _Movable):
                return value._map(function)
            if isinstance(value, list):
                return [visit(item) for item in value]
            return value

        return replace(self, **{field.name: visit(getattr(self, field.name)) for field in fields(self)})

    def to(self, device: torch.device | str, non_blocking: bool = False):
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self):
        return self._map(lambda tensor: tensor.pin_memory())


@dataclass
class Target(_Movable):
    """Ground truth of one image and what is needed to undo its resizing.

    `box_scale` maps a box relative to the network's input to pixels of the original image: multiply x by
    `box_scale[0]` and y by `box_scale[1]`. Without padding it is the original (width, height); with padding
    on the right or bottom it is larger by the padded share.
    """

    boxes: Tensor  # [N, 4] float32, cxcywh 0..1
    labels: Tensor  # [N] int64, class index 0..C-1
    image_id: int
    original_size: tuple[int, int]  # (height, width) in pixels, after EXIF rotation
    box_scale: tuple[float, float]  # (x, y), relative box -> pixels of the original image
    path: str = ""
    masks: Tensor | None = None  # [N, H, W] bool over the network's input; all False where an object's is not known


@dataclass
class Batch(_Movable):
    """What a data loader yields: images stay uint8 until they are on the device."""

    images: Tensor  # [B, 3, H, W] uint8 RGB
    targets: list[Target]

    def __len__(self) -> int:
        return len(self.targets)


@dataclass
class DenoisingPredictions(_Movable):
    """Predictions of the denoising queries, which have their ground truth fixed instead of matched."""

    logits: Tensor  # [L, B, D, C]
    boxes: Tensor  # [L, B, D, 4] cxcywh 0..1
    positive_index: list[Tensor]  # per image: query index of each positive, groups * N long, group-major
    object_index: list[Tensor]  # per image: the object (row of the target) that each positive was made from; CPU
    groups: int


@dataclass
class MaskFactors(_Movable):
    """Masks of S stages before they are multiplied out: the logits of query q are `queries[q] @ features + bias`.

    In training there are too many queries for a map each.
    """

    features: Tensor  # [S, B, D, h, w]
    queries: Tensor  # [S, B, Q, D]
    bias: Tensor  # [1]


@dataclass
class Predictions(_Movable):
    """Raw output of a detector.

    In eval mode only `logits` and `boxes` are set. In training mode `layer_*` hold every decoder layer (the last one
    equals `logits`/`boxes`), `encoder_*` the selected encoder tokens.
    """

    logits: Tensor  # [B, Q, C] before the sigmoid
    boxes: Tensor  # [B, Q, 4] cxcywh 0..1
    layer_logits: Tensor | None = None  # [L, B, Q, C]
    layer_boxes: Tensor | None = None  # [L, B, Q, 4]
    encoder_logits: Tensor | None = None  # [B, Q, C]
    encoder_boxes: Tensor | None = None  # [B, Q, 4]
    denoising: DenoisingPredictions | None = None
    masks: Tensor | None = None  # [B, Q, h, w] before the sigmoid, over the network's input; not in training mode
    layer_masks: MaskFactors | None = None  # of L decoder layers
    encoder_masks: MaskFactors | None = None  # of one stage


@dataclass
class InstanceMasks(_Movable):
    """Masks of K detections as the network gives them; `ops/masks` makes pixels of the ones that are wanted."""

    logits: Tensor  # [Q, h, w] over the network's input, of all queries
    query: Tensor  # [K] int64; detections of several classes may share one
    canvas: tuple[int, int]  # (height, width) of that input in pixels of the original image, padding included
    size: tuple[int, int]  # (height, width) of the original image

    def select(self, keep: Tensor | list[bool]) -> InstanceMasks:
        return replace(self, query=self.query[keep])


@dataclass
class Detections(_Movable):
    """Final detections of one image, best score first."""

    boxes: Tensor  # [K, 4] xyxy pixels of the original image, clipped to it
    scores: Tensor  # [K] 0..1
    labels: Tensor  # [K] int64 class index
    masks: InstanceMasks | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, threshold: float) -> Detections:
        """Those with `score >= threshold`."""
        return self.select(self.scores >= threshold)

    def select(self, keep: Tensor | list[bool]) -> Detections:
        """Those for which `keep` [K] is true."""
        masks = None if self.masks is None else self.masks.select(keep)
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep], masks)
