"""Open a file of any format: read it, resolve spec and classes, build the runtime."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import torch

from rtdetr_tool.catalog import KEYPOINTS, PUBLISHED_WEIGHTS
from rtdetr_tool.checkpoints.detector_file import is_model_directory
from rtdetr_tool.checkpoints.download import is_url
from rtdetr_tool.checkpoints.hub import HUB_NAMES, hub_id
from rtdetr_tool.checkpoints.published import published, weights_path
from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.base import OpenRequest, Runtime, file_module, runtime_module
from rtdetr_tool.formats.graph_file import GraphFile
from rtdetr_tool.formats.requested_size import FILE_SIZE, RequestedSize
from rtdetr_tool.formats.resolve import resolve
from rtdetr_tool.formats.table import FORMATS, Format, format_by_suffix
from rtdetr_tool.formats.torch.file import WeightsFile, build_network, read
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.spec import ExperimentSpec, LoadedSpec

AnyGraph = TypeVar("AnyGraph", bound=GraphFile)


@dataclass
class OpenedModel:
    """A runtime and its resolved spec: the user's, completed by the file's metadata."""

    runtime: Runtime
    spec: ExperimentSpec
    reopen: Callable[[], OpenedModel] | None = None

    def __reduce__(self) -> tuple[Callable[[], OpenedModel], tuple[()]]:
        """Sessions and engines can be neither copied nor pickled, so a copy opens the file again."""
        if self.reopen is None:
            raise TypeError(f"a model in {self.runtime.name} that was not opened by open_model cannot be copied")
        return self.reopen, ()


@dataclass
class OpenedDetector:
    """A detector with its weights, the metadata of its file (`meta`) and its resolved spec."""

    detector: Detector
    meta: Mapping[str, Any]
    class_map: ClassMap | None
    spec: ExperimentSpec
    untrained_heads: bool = False  # class heads have random weights


def open_model(
    path: str,
    loaded: LoadedSpec,
    device: torch.device | str = "cpu",
    onnx_provider: str = "auto",
    size: RequestedSize = FILE_SIZE,
    precision: str = "fp32",
    compiled: bool = False,
    name: str = "",
) -> OpenedModel:
    """Open a file to predict with it.

    Args:
        size: the input size that a command's section requests.
        precision, compiled: only for weights, which run in PyTorch (`TorchRuntime`).
        name: name of the format, if it does not follow from the suffix.

    Raises:
        UserError: the suffix is not supported, the file cannot run here, or `precision` is set for a deployed file.
        CheckpointError: the file is corrupted, contains no detector, or contradicts the spec.
    """
    row = FORMATS[name] if name else format_of(path)
    if not row.trainable:
        _check_precision(path, precision, compiled)
        path = str(weights_path(path))  # of a URL
    request = OpenRequest(loaded, torch.device(device), onnx_provider, precision, compiled)
    file = file_module(row).read(path, request)
    spec, class_map = resolve(file.recorded, loaded, size)
    if isinstance(file, GraphFile):
        file = with_keypoints(file, spec)
    runtime = runtime_module(row).build_runtime(file, spec, class_map, request)
    location = os.path.abspath(path) if os.path.exists(path) else path  # else a published name
    reopen = partial(open_model, location, loaded, device, onnx_provider, size, precision, compiled, name)
    return OpenedModel(runtime, spec, reopen)


def with_keypoints(file: AnyGraph, spec: ExperimentSpec) -> AnyGraph:
    """The file with the numbers of keypoints of each class, which are in the spec and not in the graph."""
    if spec.model.predicts != KEYPOINTS:
        return file
    return replace(file, interface=replace(file.interface, keypoints=spec.model.keypoints))


def _check_precision(path: str, precision: str, compiled: bool) -> None:
    """UserError if a precision or compilation is set for a deployed file, which has its own."""
    if precision != "fp32" or compiled:
        given = f"precision={precision}" if precision != "fp32" else "compile=true"
        raise UserError(
            f"{given} is not supported with {path}, which has a fixed precision; use a checkpoint, or export or "
            "build the file in another precision"
        )


def open_detector(path: str, loaded: LoadedSpec, size: RequestedSize = FILE_SIZE) -> OpenedDetector:
    """Open weights for training, conversion or export.

    Raises:
        UserError: the file has no trainable weights.
        CheckpointError: as for `open_model`.
    """
    if not format_of(path).trainable:
        raise _unknown_format(path)
    return build_opened(read(path, OpenRequest(loaded, torch.device("cpu"))), loaded, size)


def build_opened(file: WeightsFile, loaded: LoadedSpec, size: RequestedSize = FILE_SIZE) -> OpenedDetector:
    """The detector of weights that have been read, in training mode and on the CPU."""
    spec, class_map = resolve(file.recorded, loaded, size)
    detector = build_network(file, spec)
    return OpenedDetector(detector, file.meta, class_map, spec, untrained_heads=file.new_classes)


def format_of(path: str) -> Format:
    """The format of a file, a directory of transformers or a published name; UserError if there is none."""
    row = format_by_suffix(urlsplit(path).path if is_url(path) else path)
    if row is None and (is_model_directory(path) or published(path) or hub_id(path)):
        row = FORMATS["torch"]
    if row is None:
        raise _unknown_format(path)
    return row


def _unknown_format(path: str) -> UserError:
    suffixes = ", ".join(f"{row.title} ({', '.join(row.suffixes)})" for row in FORMATS.values())
    names = ", ".join([*(Path(file).stem for file in PUBLISHED_WEIGHTS), *HUB_NAMES])
    return UserError(
        f"{path}: not a supported file; expected {suffixes}, a directory with model.safetensors, "
        f"an id on the Hugging Face Hub, or published weights: {names}"
    )
