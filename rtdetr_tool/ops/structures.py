"""Data structures shared by data, models, losses and metrics.

Shape legend: B batch, N objects of one image, Q queries, C classes, L decoder layers, D denoising queries, P most
keypoints of a class.
Boxes always state format and unit: `cxcywh 0..1` is relative to the network's input (padding included),
`xyxy pixels` is absolute in the original image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

_Self = TypeVar("_Self", bound="_Movable")

KEYPOINT_CHANNELS = 8  # x, y, findable, visible, log l11, l21, log l22 (precision), class


@dataclass
class _Movable:
    """Moves all tensor fields of a dataclass between devices; other fields are unchanged."""

    def map(self: _Self, function: Callable[[Tensor], Tensor]) -> _Self:
        """A copy with `function` applied to every tensor, also to those of dataclasses and lists in it."""

        def visit(value: Any) -> Any:
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, _Movable):
                return value.map(function)
            if isinstance(value, list):
                return [visit(item) for item in value]
            return value

        values = {field.name: visit(getattr(self, field.name)) for field in fields(self)}
        return replace(self, **values)

    def to(self: _Self, device: torch.device | str, non_blocking: bool = False) -> _Self:
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self: _Self) -> _Self:
        return self.map(lambda tensor: tensor.pin_memory())


@dataclass
class Target(_Movable):
    """Ground truth of one image, and what is needed to undo its resizing.

    `box_scale` converts a box relative to the network's input to pixels of the original image: multiply x by
    `box_scale[0]` and y by `box_scale[1]`. Without padding it is the original (width, height); with padding on the
    right or bottom it is larger in proportion.
    """

    boxes: Tensor  # [N, 4] float32, cxcywh 0..1
    labels: Tensor  # [N] int64, class index 0..C-1
    image_id: int
    original_size: tuple[int, int]  # (height, width) in pixels, after EXIF rotation
    box_scale: tuple[float, float]  # (x, y), relative box -> pixels of the original image
    path: str = ""
    masks: Tensor | None = None  # [N, H, W] bool over the network's input; all False if unknown
    # [N, P, 3] float32: x, y relative to the network's input, and COCO's visibility; all 0 if not labeled
    keypoints: Tensor | None = None


@dataclass
class Batch(_Movable):
    """A batch of a data loader; images stay uint8 until they are on the device."""

    images: Tensor  # [B, C, H, W] uint8, mostly RGB
    targets: list[Target]

    def __len__(self) -> int:
        return len(self.targets)

    def parts(self) -> list[Batch]:
        """What the network runs on, one after another."""
        return [self]

    def joined(self, detections: Sequence[Sequence[Detections]]) -> list[Detections]:
        """The detections of each image, from those of the parts."""
        return list(detections[0])


@dataclass
class DenoisingPredictions(_Movable):
    """Predictions of the denoising queries, whose targets are fixed instead of matched."""

    logits: Tensor  # [L, B, D, C]
    boxes: Tensor  # [L, B, D, 4] cxcywh 0..1
    positive_index: list[Tensor]  # per image: query index of each positive, length groups * N, group-major; on CPU
    object_index: list[Tensor]  # per image: target row that each positive was created from; on CPU
    groups: int


@dataclass
class MaskFactors(_Movable):
    """Masks of S stages in factored form: the logits of query q are `queries[q] @ features + bias`.

    In training there are too many queries to compute all maps.
    """

    features: Tensor  # [S, B, D, h, w]
    queries: Tensor  # [S, B, Q, D]
    bias: Tensor  # [1]


@dataclass
class KeypointPredictions(_Movable):
    """Keypoints of every query for each of the first classes, which have different numbers of keypoints.

    Channels: x and y relative to the network's input, the logits of being findable (COCO's visibility above 0) and
    visible (2), the Cholesky factor of the precision matrix of (x, y) as log l11, l21, log l22, and the keypoint's
    share of the class logit.
    """

    values: Tensor  # [..., B, Q, len(counts) * P, 8]; 0 for keypoints that a class does not have
    counts: tuple[int, ...]  # number of keypoints by class index; P is the largest
    trace_alpha: float  # how much the uncertainty of keypoints reduces the score of their object


@dataclass
class Predictions(_Movable):
    """Raw output of a detector."""

    logits: Tensor  # [B, Q, C] before the sigmoid
    boxes: Tensor  # [B, Q, 4] cxcywh 0..1
    masks: Tensor | None = None  # [B, Q, h, w] before the sigmoid, over the network's input; eval mode only
    keypoints: KeypointPredictions | None = None


@dataclass(kw_only=True)
class TrainingPredictions(Predictions):
    """Raw output in training mode, of every stage that the losses supervise.

    The last of the decoder layers equals `logits` and `boxes`.
    """

    layer_logits: Tensor  # [L, B, Q, C]
    layer_boxes: Tensor  # [L, B, Q, 4]
    encoder_logits: Tensor  # [B, Q, C], of the selected encoder tokens
    encoder_boxes: Tensor  # [B, Q, 4]
    denoising: DenoisingPredictions | None = None
    layer_masks: MaskFactors | None = None  # of L decoder layers
    encoder_masks: MaskFactors | None = None  # of one stage
    layer_keypoints: KeypointPredictions | None = None  # of L decoder layers
    encoder_keypoints: KeypointPredictions | None = None


@dataclass
class InstanceMasks(_Movable):
    """Masks of K detections as network logits; `ops/masks` converts selected ones to pixels."""

    logits: Tensor  # [Q, h, w] over the network's input, of all queries
    query: Tensor  # [K] int64; detections of several classes may share a query
    canvas: tuple[int, int]  # (height, width) of the input in pixels of the original image, padding included
    size: tuple[int, int]  # (height, width) of the original image

    def select(self, keep: Tensor | list[bool] | list[int]) -> InstanceMasks:
        """Masks for which `keep` [K] is true, or at these indices in their order."""
        return replace(self, query=self.query[keep])


@dataclass
class InstanceKeypoints(_Movable):
    """Keypoints of K detections, padded to the largest number of a class; `ops/keypoints` computes covariances."""

    points: Tensor  # [K, P, 3]: x, y in pixels of the original image, and the probability of being findable
    precision: Tensor  # [K, P, 3]: log l11, l21, log l22 of the precision of (x, y) relative to the input
    counts: tuple[int, ...]  # number of keypoints by class index
    scale: tuple[float, float]  # (x, y), relative -> pixels of the original image

    def select(self, keep: Tensor | list[bool] | list[int]) -> InstanceKeypoints:
        """Keypoints for which `keep` [K] is true, or at these indices in their order."""
        return replace(self, points=self.points[keep], precision=self.precision[keep])

    def count_of(self, label: int) -> int:
        """The number of keypoints of a class index."""
        return self.counts[label] if label < len(self.counts) else 0


@dataclass
class Detections(_Movable):
    """Final detections of one image, in descending order of score."""

    boxes: Tensor  # [K, 4] xyxy pixels of the original image, clipped to it
    scores: Tensor  # [K] 0..1
    labels: Tensor  # [K] int64 class index
    masks: InstanceMasks | None = None
    keypoints: InstanceKeypoints | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, threshold: float | Tensor) -> Detections:
        """Detections with `score >= threshold`; a tensor [C] has one threshold per class index."""
        if isinstance(threshold, Tensor):
            threshold = threshold.to(self.scores.device)[self.labels]
        return self.select(self.scores >= threshold)

    def select(self, keep: Tensor | list[bool]) -> Detections:
        """Detections for which `keep` [K] is true."""
        masks = None if self.masks is None else self.masks.select(keep)
        keypoints = None if self.keypoints is None else self.keypoints.select(keep)
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep], masks, keypoints)
