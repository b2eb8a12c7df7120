"""Build engines from ONNX graphs with TensorRT or TensorRT-RTX, with the same code.

Networks are strongly typed: only the graph determines the precision (casts for FP16, Q/DQ nodes for INT8).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.tensorrt.build import (
    AMPERE_PLUS,
    BuildSettings,
    BuiltEngine,
    add_profile,
    build_engine,
    parse,
    start,
)
from rtdetr_tool.formats.tensorrt.library import LIBRARIES, LoadedLibrary, load_library
from rtdetr_tool.formats.tensorrt.monitor import make_monitor
from rtdetr_tool.formats.tensorrt.plan import write_engine_file
from rtdetr_tool.progress import Steps

__all__ = ["AMPERE_PLUS", "BuildSettings", "BuiltEngine", "EngineBackend", "choose_backend", "write_engine"]

logger = logging.getLogger(__name__)

PLACEHOLDERS = ("NONE", "CURRENT")  # members of the library's enumeration that are not a GPU

Result = TypeVar("Result")


class EngineBackend(Protocol):
    """Builds an engine from an ONNX file."""

    name: str
    version: str

    def check(self, model: Path, settings: BuildSettings) -> None: ...

    def build(self, model: Path, settings: BuildSettings) -> BuiltEngine: ...


def choose_backend(name: str, gpu: bool, compute_capabilities: Sequence[str] = ()) -> EngineBackend:
    """The builder for `gen_trt_engine.backend`: auto, tensorrt or tensorrt_rtx.

    `gpu` is whether there is a CUDA device. `auto` selects TensorRT for it, and TensorRT-RTX without a device, with
    compute capabilities, or if only that is installed.

    Raises:
        UserError: it is not installed, cannot build here, or does not know a compute capability.
    """
    if name not in ("auto", *LIBRARIES):
        raise UserError(f"gen_trt_engine.backend: {name!r} is invalid; expected one of auto, {', '.join(LIBRARIES)}")
    if name == "auto":
        order = ("tensorrt", "tensorrt_rtx") if gpu and not compute_capabilities else ("tensorrt_rtx",)
        name = next((candidate for candidate in order if LIBRARIES[candidate].installed), "")
        if not name:
            ways = "\n".join(f"  - {LIBRARIES[way].title}: {LIBRARIES[way].pip_command}" for way in order)
            here = "" if len(order) > 1 else " (TensorRT itself builds only for a GPU of this machine)"
            raise UserError(f"No library that can build this engine is installed{here}. Install:\n{ways}")
    library = LIBRARIES[name]
    if not library.ahead_of_time and compute_capabilities:
        raise UserError(
            f"gen_trt_engine.compute_capability: {library.title} builds only for the GPU of this machine. Remove it, "
            "or set gen_trt_engine.backend=tensorrt_rtx"
        )
    backend = LibraryBackend(load_library(name))
    if not library.ahead_of_time and not gpu:
        raise UserError(
            f"{library.title} requires the GPU that it builds for, but there is none (or no driver). Build on that "
            "machine, or set gen_trt_engine.backend=tensorrt_rtx and gen_trt_engine.compute_capability"
        )
    choose_targets(backend.loaded, compute_capabilities, gpu)  # reports a wrong one before the long build
    return backend


class LibraryBackend:
    """TensorRT or TensorRT-RTX."""

    def __init__(self, loaded: LoadedLibrary) -> None:
        self.loaded = loaded
        self.name = loaded.library.module
        self.version = loaded.version

    def check(self, model: Path, settings: BuildSettings) -> None:
        """Check GPUs, nodes and batch sizes before `build`. Takes about a second.

        Raises:
            UserError: as `build` does.
        """
        self._targets(settings)
        with self.loaded.listening() as messages:
            builder = start(self.loaded, messages)
            network = parse(self.loaded, builder, model, messages)
            add_profile(builder, network, builder.create_builder_config(), settings, messages)

    def build(self, model: Path, settings: BuildSettings) -> BuiltEngine:
        """Parse, optimize and serialize an ONNX file. TensorRT-RTX takes seconds, TensorRT minutes.

        Raises:
            UserError: the settings do not fit the graph, the GPU or the library.
            RtdetrError: the library failed; the message contains its reasons.
        """
        targets = self._targets(settings)
        logger.info("%s builds for %s", self.loaded.name, ", ".join(targets) or f"GPU {settings.gpu_id}")
        with Steps(f"Building the engine with {self.loaded.name}", {"optimizing": 1}) as steps:
            steps.begin("optimizing")
            return self._build(model, settings, targets, steps)

    def _build(self, model: Path, settings: BuildSettings, targets: tuple[str, ...], steps: Steps) -> BuiltEngine:
        stop = make_monitor(self.loaded.module, steps.reach)

        def work() -> BuiltEngine:
            if not targets:
                torch.cuda.set_device(settings.gpu_id)  # of this thread
            with self.loaded.listening(settings.verbose) as messages:
                return build_engine(self.loaded, model, settings, targets, stop, messages)

        return interruptible(work, stop.ask)

    def _targets(self, settings: BuildSettings) -> tuple[str, ...]:
        gpus = torch.cuda.device_count()
        targets = choose_targets(self.loaded, settings.compute_capabilities, gpus > 0)
        if not targets and settings.gpu_id >= gpus:
            raise UserError(f"gen_trt_engine.gpu_id: there is no GPU {settings.gpu_id}, only {gpus}, counted from 0")
        return targets


def write_engine(path: Path, built: BuiltEngine, description: Mapping[str, Any]) -> None:
    """Write the engine and `<path>.json`: `description`, the report as `build`, size and hash as `engine`."""
    write_engine_file(path, built.plan, {**description, "build": built.report})


def choose_targets(loaded: LoadedLibrary, names: Sequence[str], gpu: bool) -> tuple[str, ...]:
    """The compute capabilities to build for, checked; empty for the GPU of this machine."""
    if not loaded.library.ahead_of_time:
        return ()
    known = [name for name in loaded.module.ComputeCapability.__members__ if name not in PLACEHOLDERS]
    allowed = f"{', '.join(known)}, or {AMPERE_PLUS} for one engine that runs on 8.0, 8.6, 8.9, 12.0 and later"
    if not names:
        if not gpu:
            raise UserError(
                "gen_trt_engine.compute_capability: required without a GPU (or driver), but not set; expected the GPUs "
                f"that the engine is for. {loaded.name} supports {allowed}"
            )
        return ()
    targets = tuple(dict.fromkeys(name.strip().upper() for name in names))
    wrong = [name for name in targets if name not in (*known, AMPERE_PLUS)]
    if wrong:
        raise UserError(
            f"gen_trt_engine.compute_capability: {', '.join(wrong)} is invalid; {loaded.name} supports {allowed}"
        )
    if AMPERE_PLUS in targets and len(targets) > 1:
        raise UserError(f"gen_trt_engine.compute_capability: {AMPERE_PLUS} and {', '.join(targets)} cannot both be set")
    return targets


def interruptible(work: Callable[[], Result], stop: Callable[[], None]) -> Result:
    """Run `work` in a thread, so that Ctrl-C and SIGTERM are handled during the build; then `stop` it and wait.

    A signal inside one of the library's callbacks would end the process: exceptions cannot cross its C++ code.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="engine") as pool:
        future = pool.submit(work)
        try:
            return future.result()
        except BaseException:
            stop()
            raise
