"""The detection loop of evaluate and inference for every runtime."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rtdetr_tool.data.loader import explain_dead_worker
from rtdetr_tool.data.preprocess import to_float
from rtdetr_tool.errors import RtdetrError
from rtdetr_tool.formats.base import Runtime
from rtdetr_tool.ops.postprocess import detection_rows, split_rows
from rtdetr_tool.ops.structures import Batch, Detections, Predictions

BatchT = TypeVar("BatchT", bound=Batch)


@dataclass
class LoopTimes:
    """Seconds spent on each part; `load` is the wait for decoded and resized images.

    On a GPU the parts overlap: preprocess, model and postprocess are GPU time, `load` and `elapsed` are host time.
    """

    images: int = 0
    load: float = 0.0
    preprocess: float = 0.0
    model: float = 0.0
    postprocess: float = 0.0
    elapsed: float = 0.0  # of the whole loop, without the time spent by the caller

    @property
    def images_per_second(self) -> float:
        return self.images / self.elapsed if self.elapsed else 0.0

    def summary(self) -> str:
        parts = ("load", "preprocess", "model", "postprocess")
        each = ", ".join(f"{part} {1000 * getattr(self, part) / max(1, self.images):.1f}" for part in parts)
        return f"{self.images} images, {self.images_per_second:.1f} images/s (ms per image: {each})"


def detect(
    runtime: Runtime,
    loader: Iterable[BatchT],
    num_select: int,
    times: LoopTimes | None = None,
    ahead: int | None = None,
) -> Iterator[tuple[BatchT, list[Detections]]]:
    """Each batch of the loader with its detections, on the CPU; `times` is updated after each batch.

    `ahead` is the number of batches that may run while the next one is loaded; None = 1 on a GPU, else 0.
    """
    if ahead is None:
        ahead = 1 if runtime.device.type == "cuda" else 0
    workers = loader.num_workers if isinstance(loader, DataLoader) else 0
    with explain_dead_worker(f"dataset.workers (now {workers})"):
        yield from _detect(runtime, loader, num_select, LoopTimes() if times is None else times, ahead)


def _detect(
    runtime: Runtime, loader: Iterable[BatchT], num_select: int, times: LoopTimes, ahead: int
) -> Iterator[tuple[BatchT, list[Detections]]]:
    """Run the parts of each batch (one, unless images are tiled) and join their detections."""
    waiting: deque[tuple[BatchT, int]] = deque()  # batches and their numbers of parts

    def parts() -> Iterator[Batch]:
        for batch in loader:
            of_batch = batch.parts()
            waiting.append((batch, len(of_batch)))
            yield from of_batch

    results: list[list[Detections]] = []
    for detections in _run(runtime, parts(), num_select, times, ahead):
        results.append(detections)
        batch, count = waiting[0]
        if len(results) == count:
            waiting.popleft()
            times.images += len(batch)
            clock = _Clock()
            joined = batch.joined(results)
            times.postprocess += clock.lap(times)
            results = []
            yield batch, joined


def _run(
    runtime: Runtime, batches: Iterable[Batch], num_select: int, times: LoopTimes, ahead: int
) -> Iterator[list[Detections]]:
    """On a GPU, a batch is read back after the next one has been launched, so that neither waits for the other."""
    running: deque[_Launched] = deque()
    clock = _Clock()
    for batch in batches:
        times.load += clock.lap(times)
        running.append(_Launched(runtime, batch, num_select))
        while len(running) > ahead:
            result = running.popleft().read(times)
            clock.lap(times)
            yield result
            clock.lap()
    while running:
        result = running.popleft().read(times)
        clock.lap(times)
        yield result
        clock.lap()


class _Launched:
    """A batch in flight: its detections are being computed and copied to the host as one tensor."""

    def __init__(self, runtime: Runtime, batch: Batch, num_select: int) -> None:
        self.batch, self.name = batch, runtime.name
        if len(batch) == 0:
            return
        marks = [_mark(runtime.device)]
        images = to_float(batch.images.to(runtime.device, non_blocking=True))
        marks.append(_mark(runtime.device))
        predictions = runtime.predict(images)
        marks.append(_mark(runtime.device))
        rows = detection_rows(predictions, batch.targets, num_select)
        finite = all_finite(predictions).to(rows.dtype)
        self.packed = _to_pinned(torch.cat([finite[:, None, None].expand(-1, rows.shape[1], 1), rows], 2))
        self.predictions = predictions  # masks stay on the device: only those of kept detections are resized
        self.marks = [*marks, _mark(runtime.device)]

    def read(self, times: LoopTimes) -> list[Detections]:
        """Wait for the batch. This is the only place where the host waits for the device."""
        if len(self.batch) == 0:
            return []
        if isinstance(self.marks[-1], torch.cuda.Event):
            self.marks[-1].synchronize()
        check_finite(self.packed[..., 0], self.batch, self.name)
        detections = split_rows(self.packed[..., 1:], self.predictions, self.batch.targets)
        times.preprocess, times.model, times.postprocess = (
            total + _seconds(start, end)
            for total, start, end in zip(
                (times.preprocess, times.model, times.postprocess), self.marks, self.marks[1:], strict=False
            )
        )
        return detections


def all_finite(predictions: Predictions) -> Tensor:
    """Whether all logits, boxes and keypoints of each image are finite, [B] on their device."""
    parts = [predictions.logits, predictions.boxes]
    parts += [] if predictions.keypoints is None else [predictions.keypoints.values]
    return reduce(torch.logical_and, (part.isfinite().flatten(1).all(1) for part in parts))


def check_finite(finite: Tensor, batch: Batch, name: str) -> None:
    """Raise RtdetrError for NaN and infinity, which cannot be scored; `finite` [B, K] is 0 for such images."""
    broken = (finite == 0).any(1).nonzero().flatten().tolist()
    if broken:
        target = batch.targets[broken[0]]
        raise RtdetrError(
            f"The model in {name} returns NaN or infinite values, for example on {target.path or target.image_id}: "
            "values overflow (the FP16 maximum is 65504), or the weights are corrupted."
        )


def _to_pinned(values: Tensor) -> Tensor:
    """The values on the host; from a GPU they are copied asynchronously."""
    if not values.is_cuda:
        return values
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)


def _mark(device: torch.device) -> torch.cuda.Event | float:
    """A time stamp: an event on a GPU, otherwise the host's time."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _seconds(start: torch.cuda.Event | float, end: torch.cuda.Event | float) -> float:
    if isinstance(start, float) or isinstance(end, float):
        return float(end) - float(start)  # type: ignore[arg-type]  # both are times of the host
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / 1000


class _Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def lap(self, times: LoopTimes | None = None) -> float:
        """Seconds since the last lap, which are also added to `times.elapsed`."""
        now = time.perf_counter()
        elapsed, self.start = now - self.start, now
        if times is not None:
            times.elapsed += elapsed
        return elapsed
