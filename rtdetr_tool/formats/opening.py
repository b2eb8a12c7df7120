"""From a file to a runtime.

A file of ours (checkpoint, ONNX file or engine) knows its architecture, classes and input size; `settle` brings these
together with the spec, which may not contradict it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rtdetr_tool.catalog import PUBLISHED_WEIGHTS
from rtdetr_tool.checkpoints.detector_file import DetectorFile, is_transformers_directory, read_detector
from rtdetr_tool.checkpoints.loading import load_into
from rtdetr_tool.checkpoints.metadata import section_of
from rtdetr_tool.checkpoints.published import published
from rtdetr_tool.errors import CheckpointError, UserError
from rtdetr_tool.formats.base import Runtime
from rtdetr_tool.formats.onnx.file import description_of, interface_of, read_onnx
from rtdetr_tool.formats.requested_size import OWN_SIZE, AskedSize
from rtdetr_tool.formats.resolve import settle, settle_file
from rtdetr_tool.formats.torch.runtime import DTYPES, TorchRuntime
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.spec import ExperimentSpec, LoadedSpec

logger = logging.getLogger(__name__)

WEIGHT_SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")
ENGINE_SUFFIXES = (".engine", ".plan", ".trt")


@dataclass
class OpenedModel:
    """A runtime and the spec that holds for it: the user's, completed by what the file knows."""

    runtime: Runtime
    spec: ExperimentSpec
    again: Callable[[], OpenedModel] | None = None  # opens the file once more

    def __reduce__(self) -> tuple[Callable[[], OpenedModel], tuple[()]]:
        """Sessions and engines can be neither copied nor pickled: a copy opens the file itself."""
        if self.again is None:
            raise TypeError(f"a model in {self.runtime.name} that was not opened by open_model cannot be copied")
        return self.again, ()


@dataclass
class OpenedDetector:
    """A detector with its weights, what is known of its file (`DetectorFile.meta`) and the spec that holds."""

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
    asked: AskedSize = OWN_SIZE,
    precision: str = "fp32",
    compiled: bool = False,
) -> OpenedModel:
    """Open a weights file, an ONNX file, a TFLite file or a TensorRT engine, by its suffix.

    `asked` is the input size that a command's section asks for. `precision` and `compiled` are of weights files, which
    run in torch (see `TorchRuntime`).

    Raises:
        UserError: for a file no runtime can run, or one with a precision of its own for which another is given.
        CheckpointError: for a damaged or foreign file, or one the spec contradicts.
    """
    suffix = Path(path).suffix.lower()
    if suffix in (".onnx", ".tflite", *ENGINE_SUFFIXES):
        check_file_precision(path, precision, compiled)
    if suffix == ".onnx":
        opened = open_onnx(path, loaded, device, onnx_provider, asked)
    elif suffix == ".tflite":
        opened = open_tflite(path, loaded, asked)
    elif suffix in ENGINE_SUFFIXES:
        opened = open_engine(path, loaded, device, asked)
    else:
        weights = open_detector(path, loaded, asked)
        runtime = TorchRuntime(weights.detector, weights.class_map, device, DTYPES[precision], compiled)
        opened = OpenedModel(runtime, weights.spec)
    place = os.path.abspath(path) if os.path.exists(path) else path  # else a published name
    return replace(opened, again=partial(open_model, place, loaded, device, onnx_provider, asked, precision, compiled))


def check_file_precision(path: str, precision: str, compiled: bool) -> None:
    """UserError if a precision or compilation is given for a graph or engine, which has been compiled in its own."""
    if precision != "fp32" or compiled:
        given = f"precision={precision}" if precision != "fp32" else "compile=true"
        raise UserError(
            f"{given} is not supported with {path}, which has a precision of its own; use a checkpoint, or export or "
            "build the file in another precision"
        )


def open_detector(path: str, loaded: LoadedSpec, asked: AskedSize = OWN_SIZE) -> OpenedDetector:
    """The detector of a weights file (ours or another ecosystem's), in training mode and on the CPU."""
    known = Path(path).suffix.lower() in WEIGHT_SUFFIXES or is_transformers_directory(path) or published(path)
    if not known:
        names = ", ".join(Path(file).stem for file in PUBLISHED_WEIGHTS)
        raise UserError(
            f"{path}: a file of this kind is not known. Weights end in {', '.join(WEIGHT_SUFFIXES)} (or a directory "
            "of transformers with its config.json), graphs in .onnx and .tflite, TensorRT engines in "
            f"{', '.join(ENGINE_SUFFIXES)}. Published weights are {names}."
        )
    return detector_of(read_detector(path, loaded.explicit.get("model") or {}), loaded, asked)


def detector_of(file: DetectorFile, loaded: LoadedSpec, asked: AskedSize = OWN_SIZE) -> OpenedDetector:
    """The detector of a file that has been read."""
    spec, class_map = settle(file.source, loaded, file.meta, asked)
    if file.ours:
        kind = "averaged (EMA)" if file.meta.get("weights") == "ema" else "trained"
        outputs = spec.dataset.num_classes
        logger.info("%s: %s weights of %s, %s class outputs", file.source, kind, spec.model.kind, outputs)
    else:
        logger.warning("%s", file.summary())
    check_complete(file, spec)
    detector = build_detector(spec.model, spec.dataset.num_classes)
    load_into(detector, file.weights, source=file.source)
    return OpenedDetector(detector, file.meta, class_map, spec)


def check_complete(file: DetectorFile, spec: ExperimentSpec) -> None:
    """CheckpointError where neither the file nor the user says what building the detector needs."""
    if spec.dataset.num_classes is None:
        raise CheckpointError(f"{file.source} does not say how many classes it has: give dataset.num_classes.")
    outside = spec.model.family.outside_weights(spec.model)
    if file.ours and outside is not None and not outside.path:
        section, _, name = f"spec.model.{outside.field}".rpartition(".")
        trained_with = section_of(file.meta, section).get(name)
        raise CheckpointError(
            f"{file.source} needs the weights of {outside.name}, which are in a file of their own. It was trained "
            f"with {trained_with}, but files that a checkpoint names are never opened: give "
            f"model.{outside.field}."
        )


def open_onnx(
    path: str, loaded: LoadedSpec, device: torch.device | str, provider: str, asked: AskedSize = OWN_SIZE
) -> OpenedModel:
    """A graph in onnxruntime."""
    from rtdetr_tool.formats.onnx.runtime import OnnxRuntime

    model = read_onnx(path, weights=False)
    interface = interface_of(model, path)
    spec, class_map = settle_file(path, loaded, description_of(model), interface, asked)
    return OpenedModel(OnnxRuntime(path, interface, class_map, device, provider), spec)


def open_tflite(path: str, loaded: LoadedSpec, asked: AskedSize = OWN_SIZE) -> OpenedModel:
    """A TFLite file in the LiteRT interpreter, which runs on the CPU."""
    from rtdetr_tool.formats.tflite.runtime import LiteRtRuntime

    runtime = LiteRtRuntime(path)
    spec, runtime.class_map = settle_file(path, loaded, runtime.description, runtime.interface, asked)
    return OpenedModel(runtime, spec)


def open_engine(path: str, loaded: LoadedSpec, device: torch.device | str, asked: AskedSize = OWN_SIZE) -> OpenedModel:
    """A TensorRT engine; what it is stands in the JSON file beside it."""
    from rtdetr_tool.formats.tensorrt.runtime import EngineRuntime

    runtime = EngineRuntime(path, device=device)
    spec, runtime.class_map = settle_file(path, loaded, runtime.description, runtime.interface, asked)
    return OpenedModel(runtime, spec)
