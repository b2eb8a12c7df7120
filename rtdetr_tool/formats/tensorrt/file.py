"""Deserialize engines and read their interface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rtdetr_tool.errors import CheckpointError, RtdetrError, UserError
from rtdetr_tool.formats.base import OpenRequest
from rtdetr_tool.formats.graph_file import GraphFile
from rtdetr_tool.formats.graph_interface import GraphInterface, Shape, read_interface
from rtdetr_tool.formats.tensorrt.library import LIBRARIES, LoadedLibrary, Messages, load_library
from rtdetr_tool.formats.tensorrt.plan import looks_like_plan, plan_version, read_engine_file

TYPES = {
    "FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT32": torch.int32, "INT64": torch.int64,
    "INT8": torch.int8, "UINT8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class EngineFile(GraphFile):
    """An engine, deserialized for one GPU; the library's runtime must outlive the engine."""

    device: torch.device
    library: LoadedLibrary
    library_runtime: Any
    engine: Any


def read(path: str | Path, request: OpenRequest) -> EngineFile:
    return read_engine(path, request.device)


def read_engine(path: str | Path, device: torch.device | str = "cuda") -> EngineFile:
    """Deserialize an engine file, and read its description (empty if there is none).

    Raises:
        CheckpointError: the file is missing, corrupted, not an engine or detector, or does not match its description.
        UserError: there is no GPU, or the required library is missing or has another version.
    """
    path = Path(path)
    plan, description = read_engine_file(path)
    gpu = gpu_of(device, path, plan, description)
    library = library_for(path, plan, description)
    with torch.cuda.device(gpu), library.listening() as messages:
        runtime = library.module.Runtime(library.logger)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise CheckpointError(refusal(library, runtime, path, plan, description, messages))
    interface = _interface(library.module, engine, description, path)
    return EngineFile(path, description, interface, gpu, library, runtime, engine)


def gpu_of(device: torch.device | str, path: Path, plan: bytes, description: Mapping[str, Any]) -> torch.device:
    """The CUDA device to run on; messages state what the engine was built for."""
    device = torch.device(device)
    if not description and not looks_like_plan(plan):
        raise CheckpointError(_no_engine(path, plan))
    if not torch.cuda.is_available():
        raise UserError(_needs_gpu(path, plan, description))
    if device.type != "cuda":
        raise UserError(f"{path} is a TensorRT engine, which runs on a GPU, not on device {device}")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def library_for(path: Path, plan: bytes, description: Mapping[str, Any]) -> LoadedLibrary:
    """The library that built the engine: named in the description, else derived from the version in the plan."""
    name = (description.get("build") or {}).get("backend")
    if name is None:
        major = int((plan_version(plan) or "0").split(".")[0])
        name = "tensorrt_rtx" if 1 <= major < 8 else "tensorrt"
        if not LIBRARIES[name].installed and major == 0:
            name = "tensorrt_rtx" if LIBRARIES["tensorrt_rtx"].installed else name
    if name not in LIBRARIES:
        raise CheckpointError(f"{path}.json has the unknown library {name!r}; expected one of {', '.join(LIBRARIES)}")
    try:
        return load_library(name)
    except UserError as error:
        raise UserError(f"{path} cannot run ({origin(plan, description)}): {error}") from error


def refusal(
    library: LoadedLibrary, runtime: Any, path: Path, plan: bytes, description: Mapping[str, Any], messages: Messages
) -> str:
    """The message for a plan that a library rejected: the reason, if known, and what to do."""
    if not looks_like_plan(plan):
        return _no_engine(path, plan)
    build = description.get("build") or {}
    version, targets = build.get("version") or plan_version(plan), build.get("compute_capabilities")
    gpu = torch.cuda.is_available()
    here = "SM{}{}".format(*torch.cuda.get_device_capability()) if gpu else ""
    if version is not None and version != library.version:
        why = f"built by version {version}, but {library.name} is installed, and engines only run with the same version"
    elif not gpu:
        return _needs_gpu(path, plan, description)
    elif targets and here not in targets and "AMPERE_PLUS" not in targets:
        why = f"built for {', '.join(targets)}, but the GPU here is {here}"
    else:
        why = f"refused by {library.name} on {here}"
    signs = ", ".join(_diagnostics(library, runtime, plan))
    return (
        f"{path} cannot be loaded: {why}. Build it again here, or install what it was built with "
        f"({origin(plan, description)}).\n{library.library.title} reports{f' ({signs})' if signs else ''}:\n"
        f"{messages.reasons()}"
    )


def origin(plan: bytes, description: Mapping[str, Any]) -> str:
    """The origin of an engine, for messages."""
    build = description.get("build") or {}
    if not build:
        version = plan_version(plan)
        return f"its header says version {version}" if version else "it does not record what built it"
    title = LIBRARIES[build["backend"]].title if build.get("backend") in LIBRARIES else "an unknown library"
    targets = ", ".join(build.get("compute_capabilities") or ["an unnamed GPU"])
    return f"built by {title} {build.get('version', 'of unknown version')} for {targets}"


def _needs_gpu(path: Path, plan: bytes, description: Mapping[str, Any]) -> str:
    return (
        f"{path} requires an NVIDIA GPU with its driver, but PyTorch finds none here ({origin(plan, description)}). "
        "Without a GPU, use the checkpoint or the ONNX file."
    )


def _no_engine(path: Path, plan: bytes) -> str:
    return f"{path} is not a TensorRT engine ({len(plan)} bytes, starts with {plan[:8]!r})."


def _diagnostics(library: LoadedLibrary, runtime: Any, plan: bytes) -> list[str]:
    """Mismatches according to the header of a plan, from libraries that can report them."""
    if not library.library.reports_validity:
        return []
    _, bits = runtime.get_engine_validity(plan)
    members = library.module.EngineInvalidityDiagnostics.__members__
    return [name for name, bit in members.items() if int(bits) & int(bit)]


def _interface(trt: Any, engine: Any, description: Mapping[str, Any], path: Path) -> GraphInterface:
    """Inputs and outputs of the engine, which must be those of a detector."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    for name in names:
        if engine.get_tensor_dtype(name).name not in TYPES:
            raise RtdetrError(
                f"{path}: tensors of type {engine.get_tensor_dtype(name).name} ({name}) are not supported"
            )
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = {name: _shape(engine.get_tensor_shape(name)) for name in names if name not in inputs}
    return read_interface({name: _largest(engine, name) for name in inputs}, outputs, description, path)


def _shape(dims: Any) -> Shape:
    return tuple(side if side >= 0 else None for side in dims)


def _largest(engine: Any, name: str) -> Shape:
    """The shape of an input; dynamic heights and widths come from the first optimization profile."""
    shape = tuple(engine.get_tensor_shape(name))
    if -1 not in shape:
        return shape
    return (_shape(shape)[0], *tuple(engine.get_tensor_profile_shape(name, 0)[2])[1:])
