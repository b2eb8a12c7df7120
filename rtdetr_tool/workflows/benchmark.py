"""Measure a model in every runtime: each in a process of its own, with the same images.

A step is what `inference` does for a batch: decode, preprocess, model, postprocess. The parts are timed one by one; the
latency is that of all but decoding. On a GPU, a part ends when its kernels have.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rtdetr_tool.data.build import source_images
from rtdetr_tool.data.preprocess import decode_image, input_size, prepare_image, to_float
from rtdetr_tool.errors import RtdetrError, UserError
from rtdetr_tool.formats.base import Runtime
from rtdetr_tool.formats.opening import format_of, open_detector, open_model
from rtdetr_tool.formats.requested_size import RequestedSize
from rtdetr_tool.formats.table import FORMATS, exported_formats
from rtdetr_tool.messages import first_line
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.postprocess import postprocess
from rtdetr_tool.ops.structures import Predictions, Target
from rtdetr_tool.spec import BenchmarkSpec, ExperimentSpec, LoadedSpec
from rtdetr_tool.spec.fields import is_blank
from rtdetr_tool.spec.queries import reads
from rtdetr_tool.workflows.detection import score_split
from rtdetr_tool.workflows.export import export_detector

logger = logging.getLogger(__name__)

PARTS = ("decode", "preprocess", "model", "postprocess")
EAGER, OPTIMIZED = "torch eager", "torch"
_IMAGES = 32  # files that are used in turn
_FEWEST = 10  # steps, however long they take
_MOST = 20_000
_LAYERS = "model.eval_idx"


@dataclass(frozen=True)
class Candidate:
    """A runtime to measure: a file, and how it is opened."""

    name: str
    path: str
    eager: bool = False
    precision: str = "fp32"
    layers: int | None = None  # decoder layers to keep
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
class Network:
    """Size of a network; `gflops` of convolutions and matrix products for one image."""

    parameters: int
    gflops: float
    input: tuple[int, int]  # height, width


@dataclass(frozen=True)
class Job:
    """What a process needs to measure one candidate."""

    candidate: Candidate
    loaded: LoadedSpec
    images: list[str]


# Candidates


def describe_network(loaded: LoadedSpec) -> Network | None:
    """Parameters and operations of the weights; None for a deployed file, which does not state them."""
    section = loaded.spec.benchmark
    if not format_of(section.checkpoint).trainable:
        return None
    opened = open_detector(section.checkpoint, loaded, requested_size(section))
    augmentation = opened.spec.dataset.augmentation
    size = input_size(augmentation.eval_spatial_size, augmentation.preserve_aspect_ratio)
    detector = opened.detector.deploy()
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        detector(torch.zeros(1, 3, *size))
    return Network(sum(p.numel() for p in detector.parameters()), counter.get_total_flops() / 1e9, size)


def candidates(loaded: LoadedSpec, folder: Path) -> tuple[list[Candidate], list[Measurement]]:
    """The runtimes to measure and those to skip, after exporting weights to every format that is installed."""
    section = loaded.spec.benchmark
    row = format_of(section.checkpoint)
    if not row.trainable:
        if section.decoder_layers:
            raise UserError(f"benchmark.decoder_layers requires weights, but {section.checkpoint} is {row.title}")
        return [_candidate(row.name, section.checkpoint)], []
    found = [
        Candidate(EAGER, section.checkpoint, eager=True),
        _candidate(OPTIMIZED, section.checkpoint),
        replace(_candidate(f"{OPTIMIZED} bf16", section.checkpoint), precision="bf16"),
    ]
    for layers in section.decoder_layers:
        found.append(replace(_candidate(f"{OPTIMIZED}, {layers} decoder layers", section.checkpoint), layers=layers))
    skipped = []
    for other in exported_formats():
        try:
            other.to_export.require(other.title)
            other.to_run.require(other.title)
            if _requested(section, other.name):
                found.append(_candidate(other.name, str(_export(loaded, other.name, folder))))
        except RtdetrError as error:
            skipped.append(Measurement(other.name, skipped=str(error)))
    if not torch.cuda.is_available():
        skipped.append(Measurement("tensorrt", skipped="engines need an NVIDIA GPU; build one with gen_trt_engine"))
    found = [candidate for candidate in found if _requested(section, candidate.name)]
    _check_names(section, [*(c.name for c in found), *(m.name for m in skipped)])
    return found, [measurement for measurement in skipped if _requested(section, measurement.name)]


def _requested(section: BenchmarkSpec, name: str) -> bool:
    return section.runtimes is None or name in section.runtimes


def _check_names(section: BenchmarkSpec, known: Sequence[str]) -> None:
    unknown = [name for name in section.runtimes or [] if name not in known]
    if unknown:
        names = [EAGER, OPTIMIZED, f"{OPTIMIZED} bf16", *(row.name for row in exported_formats())]
        raise UserError(f"benchmark.runtimes: {', '.join(unknown)} is invalid; expected {', '.join(names)}")


def _candidate(name: str, path: str) -> Candidate:
    return Candidate(name, path, megabytes=os.path.getsize(path) / 1e6 if os.path.isfile(path) else None)


def _export(loaded: LoadedSpec, name: str, folder: Path) -> Path:
    """Export the weights, verified as `rtdetr export` does, into `folder`/models."""
    section, target = loaded.spec.benchmark, folder / "models" / f"model{FORMATS[name].suffix}"
    opened = open_detector(section.checkpoint, loaded, requested_size(section))
    export = replace(
        loaded.spec.export,
        checkpoint=section.checkpoint,
        onnx_file=str(target),
        results_dir=str(folder / "models"),
        format=name,
        batch_size=-1,
        overwrite=True,
        on_cpu=True,
    )
    return export_detector(opened, export, loaded.spec.inference.conf_threshold)


def requested_size(section: BenchmarkSpec) -> RequestedSize:
    return RequestedSize(section.input_height, section.input_width, "benchmark")


def benchmark_images(spec: ExperimentSpec) -> list[str]:
    """Image files of the first source that the spec has; UserError without one."""
    for split in ("test", "val", "infer"):
        if not is_blank(getattr(spec.dataset, f"{split}_data_sources")):
            return source_images(spec.dataset, split)[:_IMAGES]
    raise UserError(
        "benchmark: images are required, but not set; expected dataset.test_data_sources, val_data_sources, "
        "infer_data_sources or dataset_dir"
    )


# Measuring


def measure(candidate: Candidate, loaded: LoadedSpec, images: list[str]) -> Measurement:
    """Measure one runtime in a new process, so that memory and thread settings are its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(measure_here, Job(candidate, loaded, images)).result()
        except BrokenProcessPool:
            return Measurement(candidate.name, skipped="its process was killed, probably for lack of memory")


def measure_here(job: Job) -> Measurement:
    """Measure one runtime in this process; what it cannot do is the reason in `skipped`."""
    section, candidate = job.loaded.spec.benchmark, job.candidate
    if section.threads is not None:
        torch.set_num_threads(section.threads)
        os.environ["OMP_NUM_THREADS"] = str(section.threads)
    device = choose_device(section)
    memory = _Memory(device)
    try:
        runtime, spec = _open(candidate, job.loaded, device)
        timings = [
            timing
            for batch in section.batch_sizes
            if (timing := _time(runtime, spec, batch, job.images, section)) is not None
        ]
        used = memory.mib()
        scores = _scores(candidate, job.loaded, device) if section.score else {}
    except RtdetrError as error:
        return Measurement(candidate.name, skipped=first_line(error))
    return Measurement(candidate.name, str(device), timings, used, candidate.megabytes, scores)


def _open(candidate: Candidate, loaded: LoadedSpec, device: torch.device) -> tuple[Runtime, ExperimentSpec]:
    section = loaded.spec.benchmark
    size = requested_size(section)
    if candidate.layers is not None:
        loaded = loaded.with_value(_LAYERS, candidate.layers - 1)
    if candidate.eager:
        opened = open_detector(candidate.path, loaded, size)
        return _Eager(opened.detector.eval().to(device), opened.class_map, device), opened.spec
    model = open_model(candidate.path, loaded, device, "auto", size, candidate.precision)
    if candidate.layers is not None:
        check_layers(model.spec)
    return model.runtime, model.spec


def check_layers(spec: ExperimentSpec) -> None:
    """UserError for a model that cannot predict with fewer decoder layers; it would be measured whole."""
    if not reads(spec.model.arch, _LAYERS):
        raise UserError(f"benchmark.decoder_layers is not supported with {spec.model.family.title}; set it to []")


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
    decoded = [decode_image(path) for path in files[: max(batch, 8)]]
    rows: list[list[float]] = []
    deadline = 0.0
    for step in range(section.warmup + _MOST):
        if step == section.warmup:
            rows, deadline = [], time.perf_counter() + section.seconds
        elif step > section.warmup + _FEWEST and time.perf_counter() > deadline:
            break
        chosen = [(step * batch + n) % len(decoded) for n in range(batch)]
        clock = _Clock(runtime.device)
        for index in chosen:
            decode_image(files[index])
        decode = clock.lap()
        prepared = [prepare_image(decoded[index], size, letterbox) for index in chosen]
        images = to_float(torch.stack([each.image for each in prepared]).to(runtime.device))
        preprocess = clock.lap()
        predictions = runtime.predict(images)
        model = clock.lap()
        targets = [
            Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), n, each.original_size, each.box_scale)
            for n, each in enumerate(prepared)
        ]
        for found in postprocess(predictions, targets, spec.model.num_select):
            found.to("cpu")
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
    if candidate.layers is not None:
        loaded = loaded.with_value(_LAYERS, candidate.layers - 1)
    model = open_model(candidate.path, loaded, device, "auto", requested_size(section), candidate.precision)
    result = score_split(model, "test", 0.0).evaluator.compute()
    return {"mAP": result.map, "mAP50": result.map50}


class _Clock:
    """Seconds between laps, after the device has finished its work."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = self._now()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def lap(self) -> float:
        now = self._now()
        elapsed, self._start = now - self._start, now
        return elapsed


class _Memory:
    """The most memory in use since this was created, on top of what was in use then."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before: float | None = torch.cuda.memory_allocated(device) / 2**20
            return
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        self._before = _process_memory("VmRSS")

    def mib(self) -> float | None:
        """None where the system does not say."""
        if self._device.type == "cuda":
            peak: float | None = torch.cuda.max_memory_allocated(self._device) / 2**20
        else:
            peak = _process_memory("VmHWM")
        return None if peak is None or self._before is None else peak - self._before


def _process_memory(name: str) -> float | None:
    """A value of /proc/self/status in MiB; None on systems without it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), None)


def to_dict(network: Network | None, measurements: Sequence[Measurement], section: BenchmarkSpec) -> dict[str, Any]:
    """The content of benchmark.json."""
    return {
        "checkpoint": section.checkpoint,
        "network": None if network is None else asdict(network),
        "threads": section.threads or torch.get_num_threads(),
        "warmup": section.warmup,
        "seconds": section.seconds,
        "runtimes": [asdict(measurement) for measurement in measurements],
    }
