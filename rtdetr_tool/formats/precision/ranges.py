"""INT8 ranges of activations: histograms over calibration images, and methods to clip their tails."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np
import onnx
import torch

from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.precision.observe import Observer, rebatched

BINS = 2048
LEVELS = 127  # positive values of symmetric INT8


class Histogram:
    """Counts of magnitudes in `BINS` equal bins from 0 to `limit`; the limit doubles when a value exceeds it."""

    def __init__(self) -> None:
        self.limit, self.max_abs = 0.0, 0.0
        self.counts = np.zeros(BINS, np.int64)

    def add(self, value: np.ndarray) -> None:
        magnitude = torch.from_numpy(np.array(value, np.float32)).flatten().abs()
        if not torch.isfinite(magnitude).all():
            magnitude = magnitude[torch.isfinite(magnitude)]
        top = float(magnitude.max()) if magnitude.numel() else 0.0
        if top == 0.0:
            self.counts[0] += magnitude.numel()
            return
        self.max_abs = max(self.max_abs, top)
        if self.limit == 0.0:
            self.limit = top
            self.counts[0], zeros = 0, self.counts[0]
            self.counts[0] += zeros
        while self.limit < top:
            self.limit *= 2
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate([pairs, np.zeros(BINS - len(pairs), np.int64)])
        self.counts += torch.histc(magnitude, BINS, 0.0, self.limit).numpy().astype(np.int64)


def by_maximum(histogram: Histogram) -> float:
    return histogram.max_abs


def by_percentile(histogram: Histogram, percent: float) -> float:
    """The magnitude below which `percent` of the values lie."""
    share = np.cumsum(histogram.counts) / max(1, histogram.counts.sum())
    bins = int(np.searchsorted(share, percent / 100)) + 1
    return min(histogram.max_abs, histogram.limit * min(bins, BINS) / BINS)


def by_squared_error(histogram: Histogram) -> float:
    """The range with the smallest mean squared error of rounding and clipping."""
    width = histogram.limit / BINS
    centers, weights = (np.arange(BINS) + 0.5) * width, histogram.counts.astype(np.float64)
    best, best_limit = np.inf, histogram.max_abs
    for limit in histogram.max_abs * np.linspace(0.05, 1.0, 96):
        step = limit / LEVELS
        rounded = np.minimum(np.rint(centers / step), LEVELS) * step
        error = float((weights * (centers - rounded) ** 2).sum())
        if error < best:
            best, best_limit = error, float(limit)
    return best_limit


def by_entropy(histogram: Histogram) -> float:
    """The range whose quantized distribution keeps most information (Kullback-Leibler divergence)."""
    counts = histogram.counts.astype(np.float64)
    counts[0] = counts[1]  # exact zeros do not matter for the range
    best, best_bins = np.inf, BINS
    for bins in range(LEVELS + 1, BINS + 1, 8):
        original = counts[:bins].copy()
        original[-1] += counts[bins:].sum()
        divergence = _divergence(original, counts[:bins])
        if divergence < best:
            best, best_bins = divergence, bins
    return min(histogram.max_abs, histogram.limit * best_bins / BINS)


def _divergence(original: np.ndarray, inside: np.ndarray) -> float:
    """KL divergence of `original` (clipped values in its last bin) and `inside` merged into 128 levels and expanded."""
    level = np.arange(len(inside)) * (LEVELS + 1) // len(inside)
    filled = inside > 0
    total = np.bincount(level, inside, LEVELS + 1)
    members = np.bincount(level, filled, LEVELS + 1)
    spread = np.where(filled, (total / np.maximum(members, 1))[level], 0.0)
    p, q = original / max(original.sum(), 1.0), spread / max(spread.sum(), 1.0)
    q = np.where(p > 0, np.maximum(q, 1e-9), 0.0)
    mask = p > 0
    return float((p[mask] * np.log(p[mask] / q[mask])).sum())


METHODS: Mapping[str, Callable[[Histogram], float]] = {
    "minmax": by_maximum,
    "percentile 99.9": partial(by_percentile, percent=99.9),
    "percentile 99.99": partial(by_percentile, percent=99.99),
    "percentile 99.999": partial(by_percentile, percent=99.999),
    "entropy": by_entropy,
    "squared error": by_squared_error,
}


def collect(
    model: onnx.ModelProto, tensors: Iterable[str], feeds: Iterable[np.ndarray], first: list[np.ndarray], num_first: int
) -> tuple[dict[str, Histogram], int]:
    """A histogram per tensor, and the number of images; the first `num_first` images are added to `first`."""
    names = list(tensors)
    observer = Observer(model, [name for name in names if name != _input(model)])
    histograms = {name: Histogram() for name in names}
    count = 0
    for image in rebatched(feeds, model):
        if len(first) < num_first:
            first.append(image)
        count += len(image)
        if observer.input in histograms:
            histograms[observer.input].add(image)
        for name, value in observer.observe(image):
            histograms[name].add(value)
    if not count:
        raise UserError("INT8 requires calibration images; set gen_trt_engine.tensorrt.calibration.cal_image_dir")
    return histograms, count


def _input(model: onnx.ModelProto) -> str:
    weights = {tensor.name for tensor in model.graph.initializer}
    names: list[str] = [value.name for value in model.graph.input if value.name not in weights]
    return names[0]
