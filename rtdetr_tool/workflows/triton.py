"""Write a model repository for NVIDIA's Triton Inference Server from an ONNX file or a TensorRT engine.

The repository has one folder per model: `config.pbtxt`, in the text format of Triton's `ModelConfig` message, and the
model itself in the folder of its version. Class names, input size and normalization are parameters of the
configuration, so that clients can read them from the server.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtdetr_tool.errors import CheckpointError, UserError
from rtdetr_tool.files import make_folder_below, replacing, write_atomically
from rtdetr_tool.formats.table import FORMATS, format_by_suffix

CONFIGURATION, VERSION = "config.pbtxt", "1"
DEFAULT_MAX_BATCH = 8
_TYPES = {
    "bool": "TYPE_BOOL", "uint8": "TYPE_UINT8", "int8": "TYPE_INT8", "int32": "TYPE_INT32", "int64": "TYPE_INT64",
    "float16": "TYPE_FP16", "bfloat16": "TYPE_BF16", "float32": "TYPE_FP32",
}  # fmt: skip
_PARAMETERS = ("names", "input_size", "preserve_aspect_ratio", "normalisation", "rtdetr_version")


@dataclass(frozen=True)
class ServedTensor:
    """An input or output; the shape includes the batch, None is a dynamic axis."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class ServedModel:
    """What Triton needs to know of a file.

    Args:
        backend: Triton's backend.
        file: name of the file in the repository.
        companions: further files that the model needs, which keep their names.
        max_batch: largest batch size of the file; None = any.
    """

    path: Path
    backend: str
    file: str
    inputs: Sequence[ServedTensor]
    outputs: Sequence[ServedTensor]
    description: Mapping[str, Any]
    companions: Sequence[Path] = ()
    max_batch: int | None = None

    @property
    def batched(self) -> bool:
        """Whether the batch size can vary; Triton only forms batches then."""
        return all(tensor.shape and tensor.shape[0] is None for tensor in (*self.inputs, *self.outputs))


@dataclass(frozen=True)
class Serving:
    """Settings of the server.

    Args:
        name: name of the model; it is also the name of its folder.
        max_batch: largest batch that the server forms; None = the file's limit, or `DEFAULT_MAX_BATCH`.
        queue_delay: microseconds that a request may wait for others to join its batch.
        cpu: run on the CPU instead of the GPUs.
    """

    name: str
    max_batch: int | None = None
    queue_delay: int = 1000
    cpu: bool = False


def read_served_model(path: Path) -> ServedModel:
    """Read inputs, outputs and description of an ONNX file or engine.

    Raises:
        UserError: Triton cannot load files of this kind.
        CheckpointError: the file is missing, damaged or not a detector.
    """
    row = format_by_suffix(path)
    if row is FORMATS["onnx"]:
        return _read_onnx(path)
    if row is FORMATS["tensorrt"]:
        return _read_engine(path)
    kind = f"a {row.title} file" if row is not None else "of an unknown kind"
    raise UserError(f"{path} is {kind}; expected an ONNX file (rtdetr export) or a TensorRT engine (gen_trt_engine)")


def _read_onnx(path: Path) -> ServedModel:
    import onnx

    from rtdetr_tool.formats.onnx.file import description_of, interface_of, read_onnx, weights_file_of

    model = read_onnx(path, weights=False)
    interface_of(model, path)  # reports a graph that is not a detector

    def tensor(value: onnx.ValueInfoProto) -> ServedTensor:
        kind = value.type.tensor_type
        shape = tuple(axis.dim_value if axis.dim_value > 0 else None for axis in kind.shape.dim)
        return ServedTensor(value.name, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name, shape)

    constants = {entry.name for entry in model.graph.initializer}
    weights = weights_file_of(path)
    return ServedModel(
        path,
        "onnxruntime",
        "model.onnx",
        [tensor(value) for value in model.graph.input if value.name not in constants],
        [tensor(value) for value in model.graph.output],
        description_of(model),
        [weights] if weights is not None else [],
    )


def _read_engine(path: Path) -> ServedModel:
    from rtdetr_tool.formats.tensorrt.plan import description_path, read_engine_file

    _, description = read_engine_file(path)
    build = description.get("build") or {}
    if build.get("backend") == "tensorrt_rtx":
        raise UserError(
            f"{path} was built with TensorRT-RTX, which Triton does not have. Build it with "
            "gen_trt_engine.backend=tensorrt on the machine with the GPU, or use the ONNX file"
        )
    if not build.get("inputs") or not build.get("outputs"):
        raise CheckpointError(
            f"{description_path(path)} does not name the inputs and outputs of {path}; expected the file that "
            "gen_trt_engine wrote next to the engine"
        )

    def tensor(entry: Mapping[str, Any]) -> ServedTensor:
        return ServedTensor(entry["name"], entry["type"], tuple(None if n < 0 else n for n in entry["shape"]))

    inputs, outputs = ([tensor(entry) for entry in build[key]] for key in ("inputs", "outputs"))
    profile = (build.get("profile") or {}).get(inputs[0].name) or {}
    largest = profile["max"][0] if "max" in profile else None
    return ServedModel(path, "tensorrt", "model.plan", inputs, outputs, description, max_batch=largest)


def configuration(model: ServedModel, serving: Serving) -> str:
    """`config.pbtxt` as text.

    Raises:
        UserError: `serving.max_batch` is larger than the file allows.
    """
    lines = [
        f"name: {_quoted(serving.name)}",
        f"backend: {_quoted(model.backend)}",
        f"max_batch_size: {_max_batch(model, serving)}",
        *_tensors("input", model.inputs, model.batched),
        *_tensors("output", model.outputs, model.batched),
        f"instance_group [ {{ count: 1 kind: {'KIND_CPU' if serving.cpu else 'KIND_GPU'} }} ]",
    ]
    if model.batched:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {serving.queue_delay} }}")
    for key in _PARAMETERS:
        if key in model.description:
            value = model.description[key]
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            lines.append(f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(text)} }} }}")
    return "\n".join(lines) + "\n"


def _max_batch(model: ServedModel, serving: Serving) -> int:
    if not model.batched:
        fixed = model.inputs[0].shape[0]
        if serving.max_batch is not None:
            raise UserError(
                f"--max-batch {serving.max_batch}: {model.path} has the fixed batch size {fixed}, so the server cannot "
                "form batches. Export it with export.batch_size=-1"
            )
        return 0  # shapes include the batch
    largest = serving.max_batch or model.max_batch or DEFAULT_MAX_BATCH
    if model.max_batch is not None and largest > model.max_batch:
        raise UserError(
            f"--max-batch {largest}: {model.path} was built for batches up to {model.max_batch}; expected at most that"
        )
    return largest


def _tensors(kind: str, tensors: Sequence[ServedTensor], batched: bool) -> list[str]:
    lines = []
    for tensor in tensors:
        shape = tensor.shape[1:] if batched else tensor.shape
        dims = ", ".join("-1" if n is None else str(n) for n in shape)
        lines.append(
            f"{kind} [ {{ name: {_quoted(tensor.name)} data_type: {_TYPES[tensor.dtype]} dims: [ {dims} ] }} ]"
        )
    return lines


def _quoted(text: str) -> str:
    """A string of protobuf's text format, in ASCII."""
    escaped = "".join(
        f"\\{char}" if char in '"\\' else char if " " <= char <= "~" else "".join(f"\\{b:03o}" for b in char.encode())
        for char in text
    )
    return f'"{escaped}"'


def write_repository(model: ServedModel, serving: Serving, repository: Path, force: bool = False) -> Path:
    """Write the model and its configuration into `repository`; return the folder of the model.

    The configuration comes last, because a running server loads the model when it appears.

    Raises:
        UserError: the folder of the model exists (without `force`) or cannot be written.
    """
    if not re.fullmatch(r"[\w.-]+", serving.name) or serving.name.startswith("."):
        raise UserError(f"--name {serving.name!r} is invalid; expected letters, digits, '_', '-' and '.'")
    folder = repository / serving.name
    if folder.exists() and not force:
        raise UserError(f"{folder} exists; use --force to overwrite it")
    text = configuration(model, serving)
    version = folder / VERSION
    try:
        repository.mkdir(parents=True, exist_ok=True)
        make_folder_below(repository, version)
        for source in model.companions:
            _copy(source, version / source.name)
        _copy(model.path, version / model.file)
        write_atomically(folder / CONFIGURATION, text)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from None
    return folder


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
