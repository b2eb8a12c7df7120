"""Measure one runtime of a model in a separate process.

A step is what `inference` does for a batch: decode, preprocess, model, postprocess. The parts are timed one by one; the
latency is that of all but decoding. On a GPU, a part ends when its kernels have.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rtdetr_tool.data.build_sources import pixel_format_of
from rtdetr_tool.data.decoding import decode_image
from rtdetr_tool.data.preprocess import prepare_image, to_float
from rtdetr_tool.errors import RtdetrError, UserError
from rtdetr_tool.formats.base import Runtime
from rtdetr_tool.formats.opening import open_detector, open_model
from rtdetr_tool.formats.requested_size import RequestedSize
from rtdetr_tool.messages import first_line
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.postprocess import postprocess
from rtdetr_tool.ops.structures import Predictions, Target
from rtdetr_tool.spec import BenchmarkSpec, ExperimentSpec, LoadedSpec
from rtdetr_tool.workflows.benchmark_meters import Clock, MemoryMeter
from rtdetr_tool.workflows.detection import score_split

PARTS = ("decode", "preprocess", "model", "postprocess")
EAGER, OPTIMIZED = "torch eager", "torch"
_FEWEST = 10  # steps, however long they take
_MOST = 20_000


@dataclass(frozen=True)
class Candidate:
    """A runtime to measure: a file, and how it is opened."""

    name: str
    path: str
    eager: bool = False
    precision: str = "fp32"
    reduced: Mapping[str, int] = field(default_factory=dict)  # dotted spec fields that make the same weights faster
    megabytes: float | None = None


@dataclass(frozen=True)
class Timing:
    """Steps of one batch size; times in milliseconds per step, `parts` are medians per image."""

    batch: int
    steps: int
    median: float
    p95: float
    p99: float
    images_per_second: float
    parts: dict[str, float]


@dataclass(frozen=True)
class Measurement:
    """A runtime's figures, or why there are none."""

    name: str
    device: str = ""
    timings: list[Timing] = field(default_factory=list)
    memory_mib: float | None = None  # of the process (on a GPU: of the GPU), on top of that before opening
    megabytes: float | None = None  # of the file
    scores: dict[str, float | None] = field(default_factory=dict)
    skipped: str = ""


@dataclass(frozen=True)
class Job:
    """What a process needs to measure one candidate."""

    candidate: Candidate
    loaded: LoadedSpec
    images: list[str]


def requested_size(section: BenchmarkSpec) -> RequestedSize:
    return RequestedSize(section.input_height, section.input_width, "benchmark")


def measure(candidate: Candidate, loaded: LoadedSpec, images: list[str]) -> Measurement:
    """Measure one runtime in a new process with separate memory and thread settings."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(measure_here, Job(candidate, loaded, images)).result()
        except BrokenProcessPool:
            return Measurement(candidate.name, skipped="its process was killed, probably for lack of memory")


def measure_here(job: Job) -> Measurement:
    """Measure one runtime in this process; if that fails, `skipped` has the reason."""
    section, candidate = job.loaded.spec.benchmark, job.candidate
    if section.threads is not None:
        torch.set_num_threads(section.threads)
        os.environ["OMP_NUM_THREADS"] = str(section.threads)
    device = choose_device(section)
    memory = MemoryMeter(device)
    try:
        # Some runtimes prepare for the first batch size, so each size has its own.
        timings = [
            _time(*_open(candidate, job.loaded, device), batch, job.images, section) for batch in section.batch_sizes
        ]
        used = memory.mib()
        scores = _scores(candidate, job.loaded, device) if section.score else {}
    except RtdetrError as error:
        return Measurement(candidate.name, skipped=first_line(error))
    return Measurement(candidate.name, str(device), timings, used, candidate.megabytes, scores)


def _open(candidate: Candidate, loaded: LoadedSpec, device: torch.device) -> tuple[Runtime, ExperimentSpec]:
    section = loaded.spec.benchmark
    size = requested_size(section)
    loaded = loaded.with_values(candidate.reduced)
    if candidate.eager:
        opened = open_detector(candidate.path, loaded, size)
        return _Eager(opened.detector.eval().to(device), opened.class_map, device), opened.spec
    model = open_model(candidate.path, loaded, device, "auto", size, candidate.precision)
    return model.runtime, model.spec


class _Eager:
    """A detector in eval mode as a user of PyTorch would run it: nothing folded, fused or packed."""

    name, input_size = EAGER, None

    def __init__(self, detector: Any, class_map: ClassMap | None, device: torch.device) -> None:
        self.detector, self.class_map, self.device = detector, class_map, device

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Predictions:
        predictions: Predictions = self.detector(images)
        return predictions


def choose_device(section: BenchmarkSpec) -> torch.device:
    if section.on_cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    if section.gpu_id >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"benchmark.gpu_id: {section.gpu_id} is invalid; this machine has {count} GPU(s), from 0")
    return torch.device("cuda", section.gpu_id)


def _time(runtime: Runtime, spec: ExperimentSpec, batch: int, files: Sequence[str], section: BenchmarkSpec) -> Timing:
    """Time the steps of one batch size; a graph with a fixed batch size runs it in parts, as in `inference`."""
    augmentation = spec.dataset.augmentation
    size, letterbox = tuple(augmentation.eval_spatial_size), augmentation.preserve_aspect_ratio
    pixels = pixel_format_of(spec)
    decoded = [decode_image(path, pixels=pixels) for path in files[: max(batch, 8)]]
    rows: list[list[float]] = []
    deadline = 0.0
    for step in range(section.warmup + _MOST):
        if step == section.warmup:
            rows, deadline = [], time.perf_counter() + section.seconds
        elif step > section.warmup + _FEWEST and time.perf_counter() > deadline:
            break
        indices = [(step * batch + n) % len(decoded) for n in range(batch)]
        clock = Clock(runtime.device)
        for index in indices:
            decode_image(files[index], pixels=pixels)
        decode = clock.lap()
        prepared = [prepare_image(decoded[index], size, letterbox) for index in indices]
        images = to_float(torch.stack([each.image for each in prepared]).to(runtime.device))
        preprocess = clock.lap()
        predictions = runtime.predict(images)
        model = clock.lap()
        targets = [
            Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), n, each.original_size, each.box_scale)
            for n, each in enumerate(prepared)
        ]
        for detections in postprocess(predictions, targets, spec.model.num_select):
            detections.to("cpu")
        rows.append([decode, preprocess, model, clock.lap()])
    table = np.array(rows) * 1000
    latency = table[:, 1:].sum(axis=1)
    parts = dict(zip(PARTS, (np.median(table, axis=0) / batch).tolist(), strict=True))
    median, p95, p99 = (float(np.percentile(latency, q)) for q in (50, 95, 99))
    return Timing(batch, len(rows), median, p95, p99, 1000 * batch / median, parts)


def _scores(candidate: Candidate, loaded: LoadedSpec, device: torch.device) -> dict[str, float | None]:
    section = loaded.spec.benchmark
    if candidate.eager:
        return {}  # those of the optimized network
    loaded = loaded.with_values(candidate.reduced)
    model = open_model(candidate.path, loaded, device, "auto", requested_size(section), candidate.precision)
    result = score_split(model, "test", 0.0).evaluator.compute()
    return {"mAP": result.map, "mAP50": result.map50}
