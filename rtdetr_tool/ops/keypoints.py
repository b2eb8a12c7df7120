"""Keypoints of a class (names, skeleton, left and right) and of detections (pixels, uncertainty, fused scores).

Shape legend: K detections, Q queries, C classes with keypoints, P most keypoints of a class.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rtdetr_tool.errors import DataError
from rtdetr_tool.ops.structures import Detections, InstanceKeypoints, KeypointPredictions

if TYPE_CHECKING:
    from rtdetr_tool.ops.classes import ClassMap

# OKS sigmas of COCO's 17 keypoints of a person (pycocotools).
COCO_SIGMAS = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089,
    0.089,
)  # fmt: skip
OTHER_SIGMA = 0.05  # of any other keypoint, as in rfdetr
_SIDES = {"left": "right", "right": "left", "l": "r", "r": "l"}
_SMALLEST = 1e-12  # in logarithms


@dataclass(frozen=True)
class Pose:
    """The keypoints of a class.

    Args:
        names: one per keypoint.
        skeleton: pairs of keypoints (from 0) between which a line is drawn.
        swaps: for each keypoint the one that takes its place in a mirrored image; None if unknown.
    """

    names: tuple[str, ...]
    skeleton: tuple[tuple[int, int], ...] = ()
    swaps: tuple[int, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data; the skeleton counts from 1, as in COCO's files."""
        return {
            "keypoints": list(self.names),
            "skeleton": [[a + 1, b + 1] for a, b in self.skeleton],
            "swaps": None if self.swaps is None else list(self.swaps),
        }

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Pose | None:
        """The inverse of `to_dict`; None without keypoints. ValueError for anything malformed."""
        names = tuple(str(name) for name in entry.get("keypoints") or ())
        if not names:
            return None
        swaps = entry.get("swaps")
        if swaps is not None and sorted(swaps) != list(range(len(names))):
            raise ValueError(f"swaps {swaps}")
        skeleton = skeleton_of(entry.get("skeleton") or [], len(names))
        if skeleton is None:
            raise ValueError(f"skeleton {entry['skeleton']}")
        return cls(names, skeleton, None if swaps is None else tuple(swaps))


def skeleton_of(pairs: Any, count: int) -> tuple[tuple[int, int], ...] | None:
    """COCO's `skeleton`, pairs that count from 1, as pairs from 0; None if it is not one."""
    if not isinstance(pairs, (list, tuple)):
        return None
    lines = []
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            return None
        if any(type(end) is not int or not 1 <= end <= count for end in pair):
            return None
        lines.append((pair[0] - 1, pair[1] - 1))
    return tuple(lines)


def swaps_of_names(names: Sequence[str]) -> tuple[int, ...] | None:
    """Which keypoint is the other side's, by `left` and `right` (or `l` and `r`) as a word of its name.

    None if no name has a counterpart, because the names then do not show which side a keypoint is on.
    """
    words = [tuple(re.findall(r"[a-z]+|[0-9]+", name.lower())) for name in names]
    index_of = {parts: index for index, parts in enumerate(words)}
    if len(index_of) < len(words):
        return None
    swaps = []
    for index, parts in enumerate(words):
        sides = [word for word in parts if word in _SIDES]
        mirrored = tuple(_SIDES.get(word, word) for word in parts) if len(sides) == 1 else parts
        swaps.append(index_of.get(mirrored, index))
    return tuple(swaps) if swaps != list(range(len(swaps))) else None


def swaps_of_pairs(pairs: Sequence[int], count: int) -> tuple[int, ...] | None:
    """The same from a flat list of pairs a, b, a, b, ...; None if the pairs are not valid for `count` keypoints."""
    if len(pairs) % 2 or len(set(pairs)) < len(pairs) or not all(0 <= index < count for index in pairs):
        return None
    swaps = list(range(count))
    for a, b in zip(pairs[::2], pairs[1::2], strict=True):
        swaps[a], swaps[b] = b, a
    return tuple(swaps)


def check_counts(counts: Sequence[int], class_map: ClassMap, source: str) -> None:
    """DataError unless a model with these numbers of keypoints by class index has those of the classes of `source`."""
    expected = class_map.keypoint_counts
    longest = max(len(counts), len(expected))
    padded = [[*each, *[0] * (longest - len(each))] for each in (counts, expected)]
    if expected and padded[0] != padded[1]:
        raise DataError(
            f"The model has {list(counts)} keypoints by class index, but {source} has {expected}. Use data with the "
            "same keypoints, or train a model for this data (num_keypoints_per_class null takes those of the data)."
        )


def oks_sigmas(count: int, given: Sequence[float] | None = None) -> list[float]:
    """Sigmas of OKS for a class with `count` keypoints: the first given ones, else COCO's of a person, else 0.05."""
    if given is not None:
        return list(given[:count])
    return list(COCO_SIGMAS) if count == len(COCO_SIGMAS) else [OTHER_SIGMA] * count


def coco_points(detections: Detections) -> list[list[float]]:
    """COCO's `keypoints` of each detection: x, y in pixels and probability, for the keypoints of its class."""
    keypoints = detections.keypoints
    assert keypoints is not None  # only called for detections with keypoints
    pairs = zip(keypoints.points.tolist(), detections.labels.tolist(), strict=True)
    return [[value for point in points[: keypoints.count_of(label)] for value in point] for points, label in pairs]


def of_detections(
    keypoints: KeypointPredictions, query: Tensor, labels: Tensor, scores: Tensor
) -> tuple[Tensor, Tensor]:
    """Keypoints of detections, and their scores fused with the uncertainty of the keypoints.

    Args:
        keypoints: of a batch, values [B, Q, C * P, 8].
        query, labels, scores: of the detections, [B, K] each.

    Returns:
        [B, K, P, 6]: x and y relative to the input, probability of being findable, and log l11, l21, log l22 of the
        precision; 0 and NaN for keypoints that the class does not have. Scores [B, K].
    """
    counts = torch.tensor(keypoints.counts, device=labels.device)
    values = keypoints.values.float().unflatten(2, (len(keypoints.counts), -1)).flatten(1, 2)  # [B, Q * C, P, 8]
    has_pose = labels < len(counts)
    label = labels.clamp(max=len(counts) - 1)
    index = (query * len(counts) + label)[..., None, None].expand(-1, -1, *values.shape[2:])
    of_class = values.gather(1, index)  # [B, K, P, 8]
    exists = torch.arange(of_class.shape[2], device=labels.device) < counts[label][..., None]
    exists &= has_pose[..., None]
    points = torch.where(exists[..., None], torch.cat([of_class[..., :2], of_class[..., 2:3].sigmoid()], dim=-1), 0.0)
    precision = torch.where(exists[..., None], of_class[..., 4:7], torch.nan)
    if keypoints.trace_alpha > 0:
        uncertainty = _log_mean_variance(of_class, exists)
        fused = torch.sigmoid(scores.log() - keypoints.trace_alpha * uncertainty)
        below_one = torch.nextafter(torch.ones_like(fused), torch.zeros_like(fused))
        scores = torch.where(has_pose, torch.minimum(fused, below_one), scores)
    return torch.cat([points, precision], dim=-1), scores


def _log_mean_variance(keypoints: Tensor, exists: Tensor) -> Tensor:
    """Log of the mean trace of the covariances, weighted by being findable; 0 without keypoints, [B, K]."""
    log_l11, l21, log_l22 = keypoints[..., 4:7].unbind(-1)
    first, second = -2 * log_l11, -2 * log_l22
    third = 2 * l21.abs().clamp(min=_SMALLEST).log() + first + second
    trace = torch.stack([first, second, third], dim=-1).logsumexp(-1)
    weight = keypoints[..., 2].sigmoid().clamp(min=_SMALLEST).log().masked_fill(~exists, -torch.inf)
    mean: Tensor = (trace + weight).logsumexp(-1) - weight.logsumexp(-1)
    return torch.where(exists.any(-1), mean, 0.0)


def pixel_covariance(keypoints: InstanceKeypoints) -> Tensor:
    """Covariance matrices [K, P, 2, 2] of the keypoints in square pixels; NaN where there is no finite one."""
    log_l11, l21, log_l22 = keypoints.precision.double().unbind(-1)
    l11, l22 = log_l11.exp(), log_l22.exp()
    inverse = 1 / (l11 * l22).square()
    x, y = keypoints.scale
    off = -l11 * l21 * inverse * (x * y) + 0.0
    rows = [(l21.square() + l22.square()) * inverse * x * x, off, off, l11.square() * inverse * y * y]
    matrices = torch.stack(rows, dim=-1)
    finite = matrices.isfinite().all(-1, keepdim=True)
    covariance: Tensor = torch.where(finite, matrices, torch.nan).unflatten(-1, (2, 2)).float()
    return covariance
