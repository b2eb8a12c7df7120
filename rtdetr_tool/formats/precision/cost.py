"""The cost of lower precision: how much a graph's detections differ from those of the FP32 graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnxruntime import InferenceSession

from rtdetr_tool.catalog import LAYOUTS
from rtdetr_tool.formats.onnx.half_emulation import emulate_half
from rtdetr_tool.formats.precision.observe import RunFailed, image_input, open_session, rebatched, run_session

DETECTIONS = 100  # best (query, class) pairs of an image that are compared
SMALLEST_SCORE = 0.05


class CostMeter:
    """Compares graphs with the FP32 graph on some images, which are kept in memory.

    The cost is in 0..1: 0 for equal detections, 1 for none in common. It is the change of scores and overlaps of the
    detections, compared as sets and weighted by score, so the order of queries does not matter. Graphs that are not
    detectors are compared by the relative difference of their outputs.
    """

    def __init__(self, model: onnx.ModelProto, images: Sequence[np.ndarray]) -> None:
        self.input, _ = image_input(model)
        self.names = [value.name for value in model.graph.output]
        self.images = list(rebatched(images, model))
        self.reference = self._run(open_session(model), {})

    def cost(self, model: onnx.ModelProto) -> float:
        """Mean over the images; FP16 parts of `model` are computed as on a GPU."""
        return self.measure(open_session(emulate_half(model)))

    def measure(self, session: InferenceSession, inputs: Mapping[str, np.ndarray] | None = None) -> float:
        """The cost of an opened graph; `inputs` are values of additional inputs."""
        pairs = zip(self.reference, self._run(session, inputs or {}), strict=True)
        return float(np.mean([output_difference(before, after) for before, after in pairs]))

    def attempt(
        self, session: InferenceSession, inputs: Mapping[str, np.ndarray] | None = None
    ) -> tuple[float, str | None]:
        """`measure`, or an infinite cost and the failure if the graph does not run in this precision."""
        try:
            return self.measure(session, inputs), None
        except RunFailed as failed:
            return math.inf, str(failed)

    def _run(self, session: InferenceSession, inputs: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        return [
            dict(zip(self.names, run_session(session, self.names, {self.input: image, **inputs}), strict=True))
            for image in self.images
        ]


def output_difference(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> float:
    """Difference (0..1) of two results of one batch."""
    for layout in LAYOUTS.values():
        logits, boxes = layout.outputs["logits"], layout.outputs["boxes"]
        if logits not in before or boxes not in before:
            continue
        images = zip(before[logits], before[boxes], after[logits], after[boxes], strict=True)
        return float(np.mean([detection_difference(detections(a, b), detections(c, d)) for a, b, c, d in images]))
    differences = []
    for name, value in before.items():
        other = after[name].astype(np.float64)
        scale = float(np.abs(value).max()) or 1.0
        with np.errstate(invalid="ignore"):
            differences.append(np.minimum(np.nan_to_num(np.abs(other - value) / scale, nan=1.0), 1.0).mean())
    return float(np.mean(differences))


DetectionArrays = tuple[np.ndarray, np.ndarray, np.ndarray]  # scores [K], labels [K], boxes [K, 4] xyxy 0..1


def detections(logits: np.ndarray, boxes: np.ndarray) -> DetectionArrays:
    """Scores [K], labels [K], boxes [K, 4] xyxy 0..1 from logits [Q, C] and boxes [Q, 4] cxcywh 0..1, without NaN."""
    with np.errstate(over="ignore"):
        scores = 1.0 / (1.0 + np.exp(-logits.astype(np.float64).ravel()))
    best = np.argsort(-np.nan_to_num(scores, nan=-1.0), kind="stable")[:DETECTIONS]
    center, half = boxes[best // logits.shape[1], :2], boxes[best // logits.shape[1], 2:] / 2
    corners = np.concatenate([center - half, center + half], axis=1).astype(np.float64)
    good = (scores[best] >= SMALLEST_SCORE) & np.isfinite(corners).all(1)
    return scores[best][good], (best % logits.shape[1])[good], corners[good]


def detection_difference(one: DetectionArrays, other: DetectionArrays) -> float:
    """Compare each detection with its best counterpart of the same class in the other set, in both directions."""
    if not len(one[0]) and not len(other[0]):
        return 0.0
    if not len(one[0]) or not len(other[0]):
        return 1.0
    agreement = box_overlaps(one[2], other[2]) * (1.0 - np.abs(one[0][:, None] - other[0][None]))
    agreement *= one[1][:, None] == other[1][None]
    there = np.average(1.0 - agreement.max(1), weights=one[0])
    back = np.average(1.0 - agreement.max(0), weights=other[0])
    return float((there + back) / 2)


def box_overlaps(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """IoU [N, M] of boxes xyxy [N, 4] and [M, 4]."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(b[:, 2:] - b[:, :2], 0, None).prod(1) for b in (one, other)]
    overlaps: np.ndarray = shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-12)
    return overlaps
