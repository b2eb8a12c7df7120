"""The one detection loop of evaluate and inference, whatever the runtime."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from rtdetr_tool.data.loader import explain_dead_worker
from rtdetr_tool.data.preprocess import to_float
from rtdetr_tool.errors import RtdetrError
from rtdetr_tool.formats.base import Runtime
from rtdetr_tool.ops.postprocess import postprocess
from rtdetr_tool.ops.structures import Batch, Detections, Predictions


@dataclass
class LoopTimes:
    """Seconds spent on each part; `load` is the wait for decoded and resized images."""

    images: int = 0
    load: float = 0.0
    preprocess: float = 0.0
    model: float = 0.0
    postprocess: float = 0.0

    @property
    def images_per_second(self) -> float:
        total = self.load + self.preprocess + self.model + self.postprocess
        return self.images / total if total else 0.0

    def summary(self) -> str:
        parts = ("load", "preprocess", "model", "postprocess")
        each = ", ".join(f"{part} {1000 * getattr(self, part) / max(1, self.images):.1f}" for part in parts)
        return f"{self.images} images, {self.images_per_second:.1f} images/s (ms per image: {each})"


def detect(
    runtime: Runtime, loader: Iterable[Batch], num_select: int, times: LoopTimes | None = None
) -> Iterator[tuple[Batch, list[Detections]]]:
    """Each batch of the loader with its detections, on the CPU; `times` is filled as the loop goes on."""
    with explain_dead_worker(f"dataset.workers (now {getattr(loader, 'num_workers', 0)})"):
        yield from _detect(runtime, loader, num_select, LoopTimes() if times is None else times)


def _detect(
    runtime: Runtime, loader: Iterable[Batch], num_select: int, times: LoopTimes
) -> Iterator[tuple[Batch, list[Detections]]]:
    clock = _Clock(runtime.device)
    for batch in loader:
        times.load += clock.lap()
        if len(batch) == 0:
            yield batch, []
            clock.lap()
            continue
        images = to_float(batch.images.to(runtime.device, non_blocking=True))
        times.preprocess += clock.lap()
        predictions = runtime.predict(images)
        times.model += clock.lap()
        check_finite(predictions, batch, runtime.name)
        detections = [found.to("cpu") for found in postprocess(predictions, batch.targets, num_select)]
        times.postprocess += clock.lap()
        times.images += len(batch)
        yield batch, detections
        clock.lap()  # what the caller does with the batch is not ours


def check_finite(predictions: Predictions, batch: Batch, name: str) -> None:
    """RtdetrError for NaN and infinity, which have no score; half precision gives them where values overflow."""
    finite = predictions.logits.isfinite().flatten(1).all(1) & predictions.boxes.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        target = batch.targets[int((~finite).nonzero()[0])]
        raise RtdetrError(
            f"The model in {name} gives NaN or infinite values, for example on {target.path or target.image_id}: "
            "values overflow (FP16 ends at 65504), or the weights are damaged."
        )


class _Clock:
    """Seconds between laps, after the device has finished its work."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start = time.perf_counter()

    def lap(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        elapsed, self.start = now - self.start, now
        return elapsed
