"""Check that a graph detects the same objects as the detector that it was exported from.

Outputs cannot be compared element by element: two tokens whose scores differ by rounding alone swap places in the
query selection, and everything after it is permuted. So detections are compared as sets. If the tie is at the end of
the selection, another token is selected and all queries, which attend to each other, change a little. Such an image
does not test the graph and is skipped. PyTorch alone identifies it: noise below a gray level changes its detections too
(noise of the size of rounding would not do: it averages out over the pixels, rounding does not).

Shape legend: B batch, Q queries, C classes, K detections of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rtdetr_tool.ops.postprocess import top_pairs
from rtdetr_tool.ops.structures import Predictions

_PARTS = ("score", "box", "mask", "keypoint")  # fields of `Difference`
COMPARED = 100  # best detections of an image that must have a counterpart
CANDIDATES = 3 * COMPARED  # among which counterparts are searched, so that ties at the cut do not count
NOISE, ATTEMPTS = 1e-3, 8  # change of pixels (0..1), a quarter of a gray level, and number of attempts


@dataclass(frozen=True)
class Difference:
    """The largest differences over all compared detections.

    score: of the probabilities; box: of the cxcywh coordinates, relative to the input; mask: of the probabilities of
    pixels; keypoint: of the coordinates, relative to the input, and of the probabilities; unmatched: detections whose
    class does not occur on the other side at all; ambiguous: skipped images, for which PyTorch itself is unstable.
    """

    batch: int
    images: int
    detections: int
    score: float
    box: float
    unmatched: int
    ambiguous: int = 0
    mask: float = 0.0
    keypoint: float = 0.0

    def within(self, tolerance: float) -> bool:
        """Whether anything was compared and no difference is larger; NaN counts as larger."""
        worst = (self.score, self.box, self.mask, self.keypoint)
        return self.images > 0 and self.unmatched == 0 and all(each <= tolerance for each in worst)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare_predictions(expected: Predictions, actual: Predictions) -> Difference:
    """Compare each of the best detections of each side with the most similar one of its class on the other side."""
    worst, unmatched, count = [0.0] * len(_PARTS), 0, 0
    for one, other in ((expected, actual), (actual, expected)):
        for detections, candidates in zip(_images(one, COMPARED), _images(other, CANDIDATES), strict=True):
            far, missing = _farthest(detections, candidates)
            worst = [_largest(*pair) for pair in zip(worst, far, strict=True)]
            unmatched, count = unmatched + missing, count + len(detections.scores)
    batch = expected.logits.shape[0]
    score, box, mask, keypoint = worst
    return Difference(batch, batch, count, score, box, unmatched, mask=mask, keypoint=keypoint)


def compare_on(
    images: Tensor,
    batch: int,
    expected: Callable[[Tensor], Predictions],
    actual: Callable[[Tensor], Predictions],
    tolerance: float,
) -> Difference:
    """`compare_predictions` over `images` [N, 3, H, W], `batch` at a time, skipping ambiguous ones.

    A smaller remainder is skipped too. `expected` is PyTorch and accepts any batch.
    """
    differences, ambiguous = [], 0
    for part in images.split(batch):
        if len(part) < batch:
            continue
        for image, one, other in zip(part, _single(expected(part)), _single(actual(part)), strict=True):
            difference = compare_predictions(one, other)
            if not difference.within(tolerance) and is_ambiguous(image, expected, one, tolerance):
                ambiguous += 1
            else:
                differences.append(difference)
    return replace(merge(differences, batch), ambiguous=ambiguous)


def is_ambiguous(
    image: Tensor, run: Callable[[Tensor], Predictions], predictions: Predictions, tolerance: float
) -> bool:
    """Whether noise below a gray level on an image [3, H, W] changes the detections by more than `tolerance`."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(ATTEMPTS):
        noise = NOISE * torch.randn(image.shape, generator=generator).to(image)
        if not compare_predictions(predictions, run((image + noise)[None])).within(tolerance):
            return True
    return False


def _single(predictions: Predictions) -> list[Predictions]:
    """The predictions of each image of the batch."""
    return [predictions.map(partial(_only, index)) for index in range(len(predictions.logits))]


def _only(index: int, tensor: Tensor) -> Tensor:
    return tensor[index : index + 1]


def merge(differences: Iterable[Difference], batch: int) -> Difference:
    differences = list(differences)
    score, box, mask, keypoint = (reduce(_largest, (getattr(d, part) for d in differences), 0.0) for part in _PARTS)
    images, detections, unmatched = (
        sum(getattr(d, name) for d in differences) for name in ("images", "detections", "unmatched")
    )
    return Difference(batch, images, detections, score, box, unmatched, mask=mask, keypoint=keypoint)


class _Best(NamedTuple):
    """The best detections of an image, in float64."""

    scores: Tensor  # [K]
    labels: Tensor  # [K]
    boxes: Tensor  # [K, 4] cxcywh 0..1
    query: Tensor  # [K]
    masks: Tensor  # [Q, h, w] probabilities of all queries; empty without masks
    keypoints: Tensor  # [Q, S, 4] x, y, and the probabilities of being findable and visible; empty without keypoints


def _images(predictions: Predictions, count: int) -> Iterable[_Best]:
    scores, labels, query = (tensor.cpu() for tensor in top_pairs(predictions.logits, count))
    boxes = predictions.boxes.cpu().double().gather(1, query[..., None].expand(-1, -1, 4))
    masks = keypoints = predictions.logits.new_zeros(*predictions.logits.shape[:2], 0, 0)
    if predictions.masks is not None:
        masks = predictions.masks.double().sigmoid()
    if predictions.keypoints is not None:
        values = predictions.keypoints.values.double()
        keypoints = torch.cat([values[..., :2], values[..., 2:4].sigmoid()], dim=-1)
    return map(_Best, scores.double(), labels, boxes, query, masks.cpu(), keypoints.cpu())


def _farthest(detections: _Best, candidates: _Best) -> tuple[list[float], int]:
    """Largest difference of `_PARTS` to the nearest candidate of the same class; number without one."""
    scores = (detections.scores[:, None] - candidates.scores[None]).abs()  # [K, K']
    boxes = (detections.boxes[:, None] - candidates.boxes[None]).abs().amax(-1)
    distance = torch.maximum(scores, boxes)
    distance = distance.masked_fill(detections.labels[:, None] != candidates.labels[None], torch.inf)
    nearest = distance.min(dim=1)
    matched = ~nearest.values.isinf()
    if not matched.any():
        return [0.0] * len(_PARTS), len(matched)
    rows = torch.arange(len(matched))[matched]
    columns = nearest.indices[matched]
    worst = [float(scores[rows, columns].max()), float(boxes[rows, columns].max())]
    for one, other in ((detections.masks, candidates.masks), (detections.keypoints, candidates.keypoints)):
        differences = (one[detections.query[rows]] - other[candidates.query[columns]]).abs() if one.numel() else one
        worst.append(float(differences.max()) if differences.numel() else 0.0)
    return worst, int((~matched).sum())


def _largest(a: float, b: float) -> float:
    """The larger one; a NaN wins."""
    return b if b != b or b > a else a
