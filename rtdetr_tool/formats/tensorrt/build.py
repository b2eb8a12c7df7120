"""Build one engine: parse an ONNX file, set profile and targets, serialize."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rtdetr_tool.errors import RtdetrError, UserError
from rtdetr_tool.formats.tensorrt.library import LoadedLibrary, Messages, made
from rtdetr_tool.formats.tensorrt.report import layers_of_engine, layers_of_network, precisions, tensors
from rtdetr_tool.formats.tensorrt.timing_cache import TimingCache

AMPERE_PLUS = "AMPERE_PLUS"  # 8.0, 8.6, 8.9, 12.0 and later: the default of TensorRT-RTX


@dataclass(frozen=True)
class BuildSettings:
    """Build settings. Batch sizes that are None follow the graph: its fixed batch size, or from 1 if it is dynamic."""

    min_batch: int | None = None
    opt_batch: int | None = None
    max_batch: int | None = None
    workspace_mb: int = 0  # MiB; 0: as much as the GPU has
    timing_cache: Path | None = None
    verbose: bool = False
    gpu_id: int = 0
    compute_capabilities: tuple[str, ...] = ()
    allow_tf32: bool = True  # TF32 for FP32 products since Ampere, the default of TensorRT

    def batches(self, fixed: int | None) -> tuple[int, int, int]:
        """(min, opt, max) for a graph with the batch size `fixed`, or with a dynamic one if that is None."""
        given = {"min": self.min_batch, "opt": self.opt_batch, "max": self.max_batch}
        wrong = {name: value for name, value in given.items() if fixed is not None and value not in (None, fixed)}
        if wrong:
            raise UserError(
                f"the ONNX file has a fixed batch of {fixed}, but {_batch_fields(wrong)} requested. Remove the batch "
                f"sizes or set them to {fixed}, or export again with a dynamic batch (export.batch_size=-1)."
            )
        low = given["min"] or fixed or 1
        opt = given["opt"] or fixed or low
        high = given["max"] or fixed or opt
        if not 1 <= low <= opt <= high:
            wrong = {"min": low, "opt": opt, "max": high}
            raise UserError(f"{_batch_fields(wrong)} requested; expected 1 <= min <= opt <= max")
        return low, opt, high


@dataclass
class BuiltEngine:
    """A serialized engine and its description, as plain data."""

    plan: bytes
    report: dict[str, Any]


def build_engine(
    loaded: LoadedLibrary,
    model: Path,
    settings: BuildSettings,
    targets: tuple[str, ...],
    stop: Any,
    messages: Messages,
) -> BuiltEngine:
    """Build a plan from ONNX; `targets` are checked names (none: the local GPU), `stop` can end the build early."""
    began, trt = time.perf_counter(), loaded.module
    builder = start(loaded, messages)
    network = parse(loaded, builder, model, messages)
    config = builder.create_builder_config()
    config.progress_monitor = stop
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for layer names and types in the inspector
    if settings.workspace_mb:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mb << 20)
    if not settings.allow_tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    profile = add_profile(builder, network, config, settings, messages)
    set_targets(loaded, config, targets, messages)
    cache = TimingCache(settings.timing_cache, loaded)
    cache.attach(config, messages)
    memory = builder.build_serialized_network(network, config)
    plan = bytes(made(memory, f"building the engine with {loaded.name}", messages))
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
            "seconds": round(time.perf_counter() - began, 2),
            "workspace_mb": settings.workspace_mb,
            "timing_cache": cache.state,
            "warnings": list(dict.fromkeys(messages.warnings)),
        },
    )


def start(loaded: LoadedLibrary, messages: Messages) -> Any:
    """The library's builder; TensorRT requires a driver for it."""
    try:
        return loaded.module.Builder(loaded.logger)
    except TypeError as error:  # the binding raises this for a null pointer
        raise RtdetrError(f"{loaded.name} cannot start here:\n{messages.reasons()}") from error


def parse(loaded: LoadedLibrary, builder: Any, model: Path, messages: Messages) -> Any:
    """A strongly typed network from an ONNX file; one error lists every node that the library does not support."""
    trt = loaded.module
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, loaded.logger)
    parsed = parser.parse_from_file(str(model))
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if errors:
        lines = "\n".join(dict.fromkeys(f"  - {_parser_error(error)}" for error in errors))
        raise UserError(
            f"{loaded.name} cannot use this ONNX file, {len(errors)} problem{'s' if len(errors) > 1 else ''}:\n{lines}"
        )
    made(parsed, f"reading the ONNX file with {loaded.name}", messages)
    if not network.num_inputs or not network.num_outputs:
        raise UserError(f"{loaded.name} found no inputs or no outputs in the ONNX file; it is empty or truncated")
    return network


def _parser_error(error: Any) -> str:
    name, operator = error.node_name(), error.node_operator()
    where = f"node {error.node()} {name or '(no name)'} ({operator}): " if operator else ""
    reason: str = error.desc().removeprefix("Assertion failed: ")
    _, quoted, text = reason.partition('&& "')  # an assertion in the library's source, with an explanation
    return where + (text.rstrip('"') if quoted else reason)


def add_profile(
    builder: Any, network: Any, config: Any, settings: BuildSettings, messages: Messages
) -> dict[str, dict[str, list[int]]]:
    """The optimization profile: smallest, best and largest shape of each input, even if they are equal."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    profile, shapes, dynamic = builder.create_optimization_profile(), {}, False
    for tensor in inputs:
        shape = tuple(tensor.shape)
        if not shape or -1 in shape[1:]:
            raise UserError(
                f"input {tensor.name} is {list(shape)}: only the batch, axis 0, may be dynamic (-1). Export the model "
                "with a fixed input size."
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


def set_targets(loaded: LoadedLibrary, config: Any, targets: Sequence[str], messages: Messages) -> None:
    """Set the compute capabilities to build for; without any, TensorRT-RTX builds for Ampere and later."""
    if not loaded.library.ahead_of_time or tuple(targets) == (AMPERE_PLUS,):
        return
    names = tuple(targets) or ("CURRENT",)
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        capability = getattr(loaded.module.ComputeCapability, name)
        made(config.set_compute_capability(capability, index), f"building for {name}", messages)


def _batch_fields(values: Mapping[str, int]) -> str:
    parts = [f"gen_trt_engine.tensorrt.{name}_batch_size={value}" for name, value in values.items()]
    return f"{', '.join(parts)} {'is' if len(parts) == 1 else 'are'}"
