"""ONNX graphs to TensorRT engines, by TensorRT or by TensorRT-RTX, through one code path.

The networks are strongly typed: the graph alone decides the precision (casts for FP16, Q/DQ nodes for INT8).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from rtdetr_tool.checkpoints.engine_file import write_engine_file
from rtdetr_tool.checkpoints.tensorrt_library import LIBRARIES, LoadedLibrary, Messages, load_library, made
from rtdetr_tool.deploy.engine_report import layers_of_engine, layers_of_network, precisions, tensors
from rtdetr_tool.deploy.timing_cache import TimingCache
from rtdetr_tool.errors import RtdetrError, UserError

logger = logging.getLogger(__name__)

AMPERE_PLUS = "AMPERE_PLUS"  # TensorRT-RTX's own choice where no compute capability is named: 8.0, 8.6, 8.9, 12.0 and later
PLACEHOLDERS = ("NONE", "CURRENT")  # members of the library's enumeration that name no GPU

Result = TypeVar("Result")


@dataclass(frozen=True)
class BuildSettings:
    """How to build. Batch sizes that are None follow the graph: its fixed batch, or from 1 on for a dynamic one."""

    min_batch: int | None = None
    opt_batch: int | None = None
    max_batch: int | None = None
    workspace_mb: int = 0  # MB of 2**20 bytes; 0: as much as the GPU has
    timing_cache: Path | None = None
    verbose: bool = False
    gpu_id: int = 0
    compute_capabilities: tuple[str, ...] = ()
    allow_tf32: bool = True  # FP32 products with 10 instead of 23 bits of fraction on Ampere and later, TensorRT's default

    def batches(self, fixed: int | None) -> tuple[int, int, int]:
        """(min, opt, max) for a graph whose batch is `fixed`, or dynamic when that is None."""
        given = {"min": self.min_batch, "opt": self.opt_batch, "max": self.max_batch}
        wrong = {name: value for name, value in given.items() if fixed is not None and value not in (None, fixed)}
        if wrong:
            raise UserError(
                f"the ONNX file has a fixed batch of {fixed}, but {_batch_fields(wrong)} asked for. Leave the batch sizes "
                f"out or set them to {fixed}, or export again with a dynamic batch (export.batch_size=-1)."
            )
        low = given["min"] or fixed or 1
        opt = given["opt"] or fixed or max(low, min(1, given["max"] or 1))
        high = given["max"] or fixed or opt
        if not 1 <= low <= opt <= high:
            raise UserError(
                f"batch sizes {_batch_fields({'min': low, 'opt': opt, 'max': high})} asked for; allowed: "
                "1 <= min <= opt <= max"
            )
        return low, opt, high


@dataclass
class BuiltEngine:
    """A serialized engine and what is worth knowing about it, as plain data."""

    plan: bytes
    report: dict[str, Any]


class EngineBackend(Protocol):
    """What turns an ONNX file into an engine."""

    name: str
    version: str

    def build(self, model: bytes, settings: BuildSettings) -> BuiltEngine: ...


def choose_backend(name: str, gpu: bool, compute_capabilities: Sequence[str] = ()) -> EngineBackend:
    """The builder for `gen_trt_engine.backend`: auto, tensorrt or tensorrt_rtx.

    `gpu` says whether a CUDA device is there. `auto` takes TensorRT for it, and TensorRT-RTX where there is none, where
    compute capabilities are named, or where only that is installed.

    Raises:
        UserError: it is not installed or cannot build here.
    """
    if name not in ("auto", *LIBRARIES):
        raise UserError(f"gen_trt_engine.backend: {name!r} is not allowed; allowed: auto, {', '.join(LIBRARIES)}")
    if name == "auto":
        order = ("tensorrt", "tensorrt_rtx") if gpu and not compute_capabilities else ("tensorrt_rtx",)
        name = next((candidate for candidate in order if LIBRARIES[candidate].installed), "")
        if not name:
            ways = "\n".join(f"  - {LIBRARIES[way].title}: {LIBRARIES[way].pip_command}" for way in order)
            here = "" if len(order) > 1 else " (TensorRT itself builds only for a GPU that is there)"
            raise UserError(f"No library that can build this engine is installed{here}. Install:\n{ways}")
    library = LIBRARIES[name]
    if not library.ahead_of_time and compute_capabilities:
        raise UserError(
            f"gen_trt_engine.compute_capability: {library.title} builds for the GPU that is there only. Leave it out, or "
            "set gen_trt_engine.backend=tensorrt_rtx"
        )
    backend = LibraryBackend(load_library(name))
    if not library.ahead_of_time and not gpu:
        raise UserError(
            f"{library.title} builds on the GPU it builds for, and there is none here (or no driver). Build on that "
            "machine, or set gen_trt_engine.backend=tensorrt_rtx and gen_trt_engine.compute_capability"
        )
    return backend


class LibraryBackend:
    """TensorRT or TensorRT-RTX."""

    def __init__(self, loaded: LoadedLibrary) -> None:
        self.loaded = loaded
        self.name = loaded.library.module
        self.version = loaded.version

    def build(self, model: bytes, settings: BuildSettings) -> BuiltEngine:
        """Parse, optimise and serialize an ONNX file; takes seconds with TensorRT-RTX, minutes with TensorRT.

        Raises:
            UserError: the settings and the graph, the GPU or the library do not fit each other.
            RtdetrError: the library failed; the message holds its reasons.
        """
        targets = choose_targets(self.loaded, settings.compute_capabilities, torch.cuda.is_available())
        stop = _make_stop(self.loaded.module)

        def work() -> BuiltEngine:
            if torch.cuda.is_available():
                torch.cuda.set_device(settings.gpu_id)  # of this thread
            with self.loaded.listening(settings.verbose) as messages:
                return _build(self.loaded, model, settings, targets, stop, messages)

        return interruptible(work, stop.ask)


def write_engine(path: Path, built: BuiltEngine, description: Mapping[str, Any]) -> None:
    """The engine and `<path>.json`: `description`, the report as `build`, size and hash as `engine`."""
    write_engine_file(path, built.plan, {**description, "build": built.report})


def choose_targets(loaded: LoadedLibrary, names: Sequence[str], gpu: bool) -> tuple[str, ...]:
    """The compute capabilities to build for, checked; empty for the GPU that is there."""
    if not loaded.library.ahead_of_time:
        return ()
    known = [name for name in loaded.module.ComputeCapability.__members__ if name not in PLACEHOLDERS]
    allowed = f"{', '.join(known)}, or {AMPERE_PLUS} for one engine that runs on 8.0, 8.6, 8.9, 12.0 and later"
    if not names:
        if not gpu:
            raise UserError(
                "There is no GPU here to build for (or no driver): set gen_trt_engine.compute_capability to the GPUs "
                f"that the engine is for. {loaded.name} knows {allowed}"
            )
        return ()
    wanted = tuple(dict.fromkeys(name.strip().upper() for name in names))
    wrong = [name for name in wanted if name not in (*known, AMPERE_PLUS)]
    if wrong:
        raise UserError(f"gen_trt_engine.compute_capability: {loaded.name} does not know {', '.join(wrong)}. It knows {allowed}")
    if AMPERE_PLUS in wanted and len(wanted) > 1:
        raise UserError(f"gen_trt_engine.compute_capability: {AMPERE_PLUS} stands alone, without {', '.join(wanted)}")
    return wanted


def _build(
    loaded: LoadedLibrary,
    model: bytes,
    settings: BuildSettings,
    targets: tuple[str, ...],
    stop: Any,
    messages: Messages,
) -> BuiltEngine:
    start, trt = time.perf_counter(), loaded.module
    try:
        builder = trt.Builder(loaded.logger)
    except TypeError as error:  # how the binding reports a null pointer
        raise RtdetrError(f"{loaded.name} cannot start here:\n{messages.reasons()}") from error
    network = parse(loaded, builder, model, messages)
    config = builder.create_builder_config()
    config.progress_monitor = stop
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for layer names and types in the inspector
    if settings.workspace_mb:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mb << 20)
    if not settings.allow_tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    profile = add_profile(builder, network, config, settings, messages)
    set_targets(trt, config, targets, messages)
    cache = TimingCache(settings.timing_cache, loaded)
    cache.attach(config, messages)
    memory = made(builder.build_serialized_network(network, config), f"building the engine with {loaded.name}", messages)
    plan = bytes(memory)
    cache.save(config)
    layers = layers_of_network(network) if targets else layers_of_engine(loaded, plan, messages)
    present = [] if targets else ["SM{}{}".format(*torch.cuda.get_device_capability())]
    return BuiltEngine(
        plan,
        {
            "backend": loaded.library.module,
            "version": loaded.version,
            "compute_capabilities": list(targets) or present,
            "gpu": None if targets else torch.cuda.get_device_name(),
            "profile": profile,
            **tensors(network),
            "precision": precisions(network),
            "tf32": settings.allow_tf32,
            "layers": layers,
            "bytes": len(plan),
            "seconds": round(time.perf_counter() - start, 2),
            "workspace_mb": settings.workspace_mb,
            "timing_cache": cache.state,
            "warnings": list(dict.fromkeys(messages.warnings)),
        },
    )


def parse(loaded: LoadedLibrary, builder: Any, model: bytes, messages: Messages) -> Any:
    """A strongly typed network from an ONNX file; one error names every node that the library refuses."""
    trt = loaded.module
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, loaded.logger)
    parsed = parser.parse(model)
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if errors:
        lines = "\n".join(dict.fromkeys(f"  - {_parser_error(error)}" for error in errors))
        raise UserError(
            f"{loaded.name} cannot use this ONNX file, {len(errors)} problem{'s' if len(errors) > 1 else ''}:\n{lines}"
        )
    made(parsed, f"reading the ONNX file with {loaded.name}", messages)
    if not network.num_inputs or not network.num_outputs:
        raise UserError(f"{loaded.name} found no inputs or no outputs in the ONNX file; it is empty or cut short")
    return network


def _parser_error(error: Any) -> str:
    name, operator = error.node_name(), error.node_operator()
    where = f"node {error.node()} {name or '(no name)'} ({operator}): " if operator else ""
    reason = error.desc().removeprefix("Assertion failed: ")
    _, quoted, text = reason.partition('&& "')  # an assertion of the library's source with its explanation
    return where + (text.rstrip('"') if quoted else reason)


def add_profile(
    builder: Any, network: Any, config: Any, settings: BuildSettings, messages: Messages
) -> dict[str, dict[str, list[int]]]:
    """The optimisation profile: for each input its smallest, best and largest shape, also where they are one."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    profile, shapes, dynamic = builder.create_optimization_profile(), {}, False
    for tensor in inputs:
        shape = tuple(tensor.shape)
        if not shape or -1 in shape[1:]:
            raise UserError(
                f"input {tensor.name} is {list(shape)}: only the batch, axis 0, may be dynamic (-1). Export the model with "
                "a fixed input size."
            )
        batches = settings.batches(None if shape[0] == -1 else shape[0])
        each = [(batch, *shape[1:]) for batch in batches]
        shapes[tensor.name] = {kind: list(shape) for kind, shape in zip(("min", "opt", "max"), each, strict=True)}
        if shape[0] == -1:
            dynamic = True
            profile.set_shape(tensor.name, *each)
    if dynamic and config.add_optimization_profile(profile) < 0:
        made(None, "setting the batch profile", messages)
    return shapes


def set_targets(trt: Any, config: Any, targets: Sequence[str], messages: Messages) -> None:
    """Name the compute capabilities; without any TensorRT-RTX makes an engine for Ampere and later."""
    if not hasattr(config, "num_compute_capabilities") or tuple(targets) == (AMPERE_PLUS,):
        return
    names = tuple(targets) or ("CURRENT",)
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        capability = getattr(trt.ComputeCapability, name)
        made(config.set_compute_capability(capability, index), f"building for {name}", messages)


def _make_stop(trt: Any) -> Any:
    class Stop(trt.IProgressMonitor):
        """Ends a build at its next step once asked."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.asked = False

        def ask(self) -> None:
            self.asked = True

        def phase_start(self, name: str, parent: str, steps: int) -> None:
            pass

        def phase_finish(self, name: str) -> None:
            pass

        def step_complete(self, name: str, step: int) -> bool:
            return not self.asked

    return Stop()


def interruptible(work: Callable[[], Result], stop: Callable[[], None]) -> Result:
    """Run `work` in a thread, so that Ctrl-C and SIGTERM reach us while the library works; then `stop` it and wait.

    A signal inside one of the library's callbacks would end the process: exceptions cannot cross its C++.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="engine") as pool:
        future = pool.submit(work)
        try:
            return future.result()
        except BaseException:
            stop()
            raise


def _batch_fields(values: Mapping[str, int]) -> str:
    parts = [f"{name}_batch_size {value}" for name, value in values.items()]
    return f"gen_trt_engine.tensorrt {', '.join(parts)} {'is' if len(parts) == 1 else 'are'}"
