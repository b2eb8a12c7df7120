"""A detector as a TensorRT or TensorRT-RTX engine, on tensors of torch and in its streams."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtdetr_tool.errors import CheckpointError, RtdetrError, UserError
from rtdetr_tool.formats.batching import BatchLimits, run_in_batches
from rtdetr_tool.formats.graph_interface import GraphInterface, Shape, read_interface
from rtdetr_tool.formats.graph_tensors import predictions_of, to_graph
from rtdetr_tool.formats.tensorrt.file import looks_like_plan, plan_version, read_engine_file
from rtdetr_tool.formats.tensorrt.library import LIBRARIES, LoadedLibrary, Messages, load_library, made
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.structures import Predictions

logger = logging.getLogger(__name__)

TYPES = {
    "FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT32": torch.int32, "INT64": torch.int64,
    "INT8": torch.int8, "UINT8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class EngineRuntime:
    """An engine file, ready to predict on one GPU.

    `description` is what the file beside it says (empty without one), `num_classes` the width of the logits.

    Raises:
        CheckpointError: the file is missing, damaged, no engine, no detector, or does not belong to its description.
        UserError: there is no GPU, or the library that the engine needs is not installed or of another version.
    """

    def __init__(
        self, path: str | Path, device: torch.device | str = "cuda", class_map: ClassMap | None = None
    ) -> None:
        plan, self.description = read_engine_file(path)
        self.path, self.class_map = Path(path), class_map
        self.device = gpu_of(device, self.path, plan, self.description)
        self.library = library_for(self.path, plan, self.description)
        self.name = self.library.name.lower()
        with torch.cuda.device(self.device), self.library.listening() as messages:
            self._runtime = self.library.module.Runtime(self.library.logger)
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                raise CheckpointError(refusal(self.library, self._runtime, self.path, plan, self.description, messages))
            self._context = made(self._engine.create_execution_context(), f"preparing {path} to run", messages)
        self.interface = _interface(self.library.module, self._engine, self.description, self.path)
        self.input, self.outputs = self.interface.layout.input, self.interface.outputs
        self.input_size, self.limits = self.interface.size, _limits(self._engine, self.input)
        self.num_classes = self.interface.classes
        self._stream = torch.cuda.Stream(self.device)

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Predictions:
        images = to_graph(images, self.interface.layout)
        return predictions_of(run_in_batches(images, self.limits, self._run), self.interface)

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        """One batch that the engine takes.

        It runs in a stream of its own, because in the default stream TensorRT synchronises the whole device; that
        stream and the caller's wait for each other.
        """
        images = images.to(self.device, TYPES[self._engine.get_tensor_dtype(self.input).name]).contiguous()
        caller = torch.cuda.current_stream(self.device)
        with torch.cuda.device(self.device), self.library.listening() as messages:
            made(self._context.set_input_shape(self.input, tuple(images.shape)), f"batch {len(images)}", messages)
            outputs = {name: self._buffer(name) for name in self.outputs}
            for name, tensor in {self.input: images, **outputs}.items():
                made(self._context.set_tensor_address(name, tensor.data_ptr()), f"handing over {name}", messages)
            self._stream.wait_stream(caller)
            made(self._context.execute_async_v3(self._stream.cuda_stream), f"running {self.path}", messages)
            caller.wait_stream(self._stream)
        return outputs

    def _buffer(self, name: str) -> Tensor:
        shape = tuple(self._context.get_tensor_shape(name))
        return torch.empty(shape, dtype=TYPES[self._engine.get_tensor_dtype(name).name], device=self.device)


def gpu_of(device: torch.device | str, path: Path, plan: bytes, description: Mapping[str, Any]) -> torch.device:
    """The CUDA device to run on; the messages say what the engine was built for."""
    device = torch.device(device)
    if not description and not looks_like_plan(plan):
        raise CheckpointError(_no_engine(path, plan))
    if not torch.cuda.is_available():
        raise UserError(_needs_gpu(path, plan, description))
    if device.type != "cuda":
        raise UserError(f"{path} is a TensorRT engine and runs on a GPU; device {device} was asked for")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def library_for(path: Path, plan: bytes, description: Mapping[str, Any]) -> LoadedLibrary:
    """The library that built the engine: named in the description, else told by the version in the plan."""
    name = (description.get("build") or {}).get("backend")
    if name is None:
        major = int((plan_version(plan) or "0").split(".")[0])
        name = "tensorrt_rtx" if 1 <= major < 8 else "tensorrt"
        if not LIBRARIES[name].installed and major == 0:
            name = "tensorrt_rtx" if LIBRARIES["tensorrt_rtx"].installed else name
    if name not in LIBRARIES:
        raise CheckpointError(f"{path}.json names an unknown library {name!r}; known: {', '.join(LIBRARIES)}")
    try:
        return load_library(name)
    except UserError as error:
        raise UserError(f"{path} cannot run ({origin(plan, description)}): {error}") from error


def refusal(
    library: LoadedLibrary, runtime: Any, path: Path, plan: bytes, description: Mapping[str, Any], messages: Messages
) -> str:
    """Why a library did not take a plan, as far as it can be told, and what to do."""
    if not looks_like_plan(plan):
        return _no_engine(path, plan)
    build = description.get("build") or {}
    version, targets = build.get("version") or plan_version(plan), build.get("compute_capabilities")
    gpu = torch.cuda.is_available()
    here = "SM{}{}".format(*torch.cuda.get_device_capability()) if gpu else ""
    if version is not None and version != library.version:
        why = f"built by version {version}, but {library.name} is installed, and an engine runs on its own version only"
    elif not gpu:
        return _needs_gpu(path, plan, description)
    elif targets and here not in targets and "AMPERE_PLUS" not in targets:
        why = f"built for {', '.join(targets)}, but the GPU here is {here}"
    else:
        why = f"refused by {library.name} on {here}"
    signs = ", ".join(_diagnostics(library.module, runtime, plan))
    return (
        f"{path} cannot be loaded: {why}. Build it again here, or install what it was built with "
        f"({origin(plan, description)}).\n{library.library.title} says{f' ({signs})' if signs else ''}:\n"
        f"{messages.reasons()}"
    )


def origin(plan: bytes, description: Mapping[str, Any]) -> str:
    """Where an engine comes from, in a few words."""
    build = description.get("build") or {}
    if not build:
        version = plan_version(plan)
        return f"its header says version {version}" if version else "it does not say what built it"
    title = LIBRARIES[build["backend"]].title if build.get("backend") in LIBRARIES else "an unknown library"
    targets = ", ".join(build.get("compute_capabilities") or ["an unnamed GPU"])
    return f"built by {title} {build.get('version', 'of unknown version')} for {targets}"


def _needs_gpu(path: Path, plan: bytes, description: Mapping[str, Any]) -> str:
    return (
        f"{path} needs an NVIDIA GPU with its driver, and torch finds none here ({origin(plan, description)}). "
        "Where there is none, evaluate and inference take the checkpoint or the ONNX file."
    )


def _no_engine(path: Path, plan: bytes) -> str:
    return f"{path} is not a TensorRT engine ({len(plan)} bytes, starts with {plan[:8]!r})."


def _diagnostics(trt: Any, runtime: Any, plan: bytes) -> list[str]:
    """TensorRT-RTX tells from the header what does not fit; TensorRT has no such call."""
    if not hasattr(runtime, "get_engine_validity"):
        return []
    _, found = runtime.get_engine_validity(plan)
    return [name for name, bit in trt.EngineInvalidityDiagnostics.__members__.items() if int(found) & int(bit)]


def _interface(trt: Any, engine: Any, description: Mapping[str, Any], path: Path) -> GraphInterface:
    """What the engine takes and gives, which has to be what a detector does."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    for name in names:
        if engine.get_tensor_dtype(name).name not in TYPES:
            raise RtdetrError(f"{path}: tensors of type {engine.get_tensor_dtype(name).name} ({name}) cannot be passed")
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = {name: _shape(engine.get_tensor_shape(name)) for name in names if name not in inputs}
    return read_interface({name: _largest(engine, name) for name in inputs}, outputs, description, path)


def _shape(dims: Any) -> Shape:
    return tuple(side if side >= 0 else None for side in dims)


def _largest(engine: Any, name: str) -> Shape:
    """The shape of an input; height and width, where dynamic, from the first optimisation profile."""
    shape = tuple(engine.get_tensor_shape(name))
    if -1 not in shape:
        return shape
    return (_shape(shape)[0], *tuple(engine.get_tensor_profile_shape(name, 0)[2])[1:])


def _limits(engine: Any, name: str) -> BatchLimits:
    """The batch sizes, from the first optimisation profile or the fixed shape."""
    shape = tuple(engine.get_tensor_shape(name))
    if -1 not in shape:
        return BatchLimits(shape[0], shape[0])
    low, _, high = (tuple(each) for each in engine.get_tensor_profile_shape(name, 0))
    return BatchLimits(low[0], high[0])
