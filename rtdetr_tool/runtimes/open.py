"""From a file to a runtime.

A file of ours (checkpoint, ONNX file or engine) knows its architecture, classes and input size; the spec may not
contradict it.
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

from rtdetr_tool.artifacts.description import DEPLOYED_AUGMENTATION, DEPLOYED_DATASET
from rtdetr_tool.artifacts.onnx_file import description_of, interface_of, read_onnx
from rtdetr_tool.catalog import PUBLISHED_WEIGHTS
from rtdetr_tool.checkpoints.detector_file import DetectorFile, is_transformers_directory, read_detector
from rtdetr_tool.checkpoints.loading import load_into
from rtdetr_tool.checkpoints.metadata import KEY, check_against, checked_metadata, section_of, without_paths
from rtdetr_tool.checkpoints.published import published
from rtdetr_tool.data.classes import ClassMap
from rtdetr_tool.data.preprocess import input_size
from rtdetr_tool.errors import CheckpointError, UserError
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.models.rtdetr.detector import RTDETR
from rtdetr_tool.runtimes.base import Runtime
from rtdetr_tool.runtimes.torch_runtime import TorchRuntime
from rtdetr_tool.spec import SIZE_FIELDS, DatasetSpec, ExperimentSpec, LoadedSpec, spec_from_dict, spec_to_dict

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

    detector: RTDETR
    meta: Mapping[str, Any]
    class_map: ClassMap | None
    spec: ExperimentSpec
    untrained_heads: bool = False  # class heads have random weights


def open_model(
    path: str, loaded: LoadedSpec, device: torch.device | str = "cpu", onnx_provider: str = "auto"
) -> OpenedModel:
    """Open a weights file, an ONNX file, a TFLite file or a TensorRT engine, by its suffix.

    Raises:
        UserError: for a file no runtime can run.
        CheckpointError: for a damaged or foreign file, or one the spec contradicts.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".onnx":
        opened = open_onnx(path, loaded, device, onnx_provider)
    elif suffix == ".tflite":
        opened = open_tflite(path, loaded)
    elif suffix in ENGINE_SUFFIXES:
        opened = open_engine(path, loaded, device)
    else:
        weights = open_detector(path, loaded)
        opened = OpenedModel(TorchRuntime(weights.detector, weights.class_map, device), weights.spec)
    place = os.path.abspath(path) if os.path.exists(path) else path  # else a published name
    return replace(opened, again=partial(open_model, place, loaded, device, onnx_provider))


def open_detector(path: str, loaded: LoadedSpec) -> OpenedDetector:
    """The detector of a weights file (ours or another ecosystem's), in training mode and on the CPU."""
    known = Path(path).suffix.lower() in WEIGHT_SUFFIXES or is_transformers_directory(path) or published(path)
    if not known:
        names = ", ".join(Path(file).stem for file in PUBLISHED_WEIGHTS)
        raise UserError(
            f"{path}: a file of this kind is not known. Weights end in {', '.join(WEIGHT_SUFFIXES)} (or a directory "
            "of transformers with its config.json), graphs in .onnx and .tflite, TensorRT engines in "
            f"{', '.join(ENGINE_SUFFIXES)}. Published weights are {names}."
        )
    return detector_of(read_detector(path, loaded.explicit.get("model") or {}), loaded)


def detector_of(file: DetectorFile, loaded: LoadedSpec) -> OpenedDetector:
    """The detector of a file that has been read."""
    spec, class_map = settle(file.source, loaded, file.meta)
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
    frozen = spec.model.frozen_fm
    if file.ours and frozen.enabled and not frozen.checkpoint:
        trained_with = section_of(file.meta, "spec.model.frozen_fm").get("checkpoint")
        raise CheckpointError(
            f"{file.source} needs the weights of {frozen.backbone}, which are in a file of their own. It was trained "
            f"with {trained_with}, but files that a checkpoint names are never opened: give model.frozen_fm.checkpoint."
        )


def open_onnx(path: str, loaded: LoadedSpec, device: torch.device | str, provider: str) -> OpenedModel:
    """A graph in onnxruntime."""
    from rtdetr_tool.runtimes.onnx_runtime import OnnxRuntime

    model = read_onnx(path, weights=False)
    interface = interface_of(model, path)
    spec, class_map = settle_file(path, loaded, description_of(model), interface.size, interface.classes)
    return OpenedModel(OnnxRuntime(path, interface, class_map, device, provider), spec)


def open_tflite(path: str, loaded: LoadedSpec) -> OpenedModel:
    """A TFLite file in the LiteRT interpreter, which runs on the CPU."""
    from rtdetr_tool.runtimes.litert_runtime import LiteRtRuntime

    runtime = LiteRtRuntime(path)
    interface = runtime.interface
    spec, runtime.class_map = settle_file(path, loaded, runtime.description, interface.size, interface.classes)
    return OpenedModel(runtime, spec)


def open_engine(path: str, loaded: LoadedSpec, device: torch.device | str) -> OpenedModel:
    """A TensorRT engine; what it is stands in the JSON file beside it."""
    from rtdetr_tool.runtimes.engine_runtime import EngineRuntime

    runtime = EngineRuntime(path, device=device)
    spec, class_map = settle_file(path, loaded, runtime.description, runtime.input_size, runtime.num_classes)
    runtime.class_map = class_map
    return OpenedModel(runtime, spec)


def settle_file(
    path: str,
    loaded: LoadedSpec,
    description: Mapping[str, Any],
    size: tuple[int, int],
    classes: int | None,
) -> tuple[ExperimentSpec, ClassMap | None]:
    """Spec and classes for a graph or engine: its own where it has them, with its input size and number of classes.

    Raises:
        CheckpointError: where the spec says otherwise.
    """
    meta, class_map = description.get(KEY), None
    if isinstance(meta, Mapping) and "spec" in meta:
        spec, class_map = settle(path, loaded, checked_metadata(meta, path))
    else:
        spec = loaded.spec
        logger.warning("%s does not say what its classes are: the spec and the data give them", path)
    given = loaded.explicit.get("dataset") or {}
    if classes is not None and classes != spec.dataset.num_classes:
        if given.get("num_classes") is not None or class_map is not None:
            raise CheckpointError(
                f"{path} predicts {classes} classes, but dataset.num_classes is {spec.dataset.num_classes}; leave "
                "dataset.num_classes out, or choose the file that belongs to this data"
            )
        spec = replace(spec, dataset=replace(spec.dataset, num_classes=classes))
    size_given = "eval_spatial_size" in (given.get("augmentation") or {})
    return replace(spec, dataset=with_input_size(spec.dataset, size, path, size_given)), class_map


def with_input_size(dataset: DatasetSpec, size: tuple[int, int], path: str, given: bool) -> DatasetSpec:
    """The data set section with the one input size that the file takes."""
    augmentation = dataset.augmentation
    wanted = input_size(augmentation.eval_spatial_size, augmentation.preserve_aspect_ratio)
    if wanted == size:
        return dataset
    if given:
        raise CheckpointError(
            f"{path} takes inputs of {size[0]} x {size[1]} (height x width) only; "
            f"dataset.augmentation.eval_spatial_size asks for {wanted[0]} x {wanted[1]}"
        )
    return replace(dataset, augmentation=replace(augmentation, eval_spatial_size=list(size)))


def settle(path: str, loaded: LoadedSpec, meta: Mapping[str, Any]) -> tuple[ExperimentSpec, ClassMap | None]:
    """The spec completed by what the file says, and its classes; CheckpointError where they contradict each other."""
    check_against(loaded.spec, meta, source=str(path), explicit=loaded.explicit)
    spec = complete_spec(loaded, meta)
    return spec, ClassMap.from_list(meta["classes"], spec.dataset.num_classes) if meta["classes"] else None


def complete_spec(loaded: LoadedSpec, meta: Mapping[str, Any]) -> ExperimentSpec:
    """The user's spec where it says something; elsewhere the checkpoint's architecture, classes and sizes.

    Paths are the user's alone: whoever made the checkpoint has no say in what is read here.
    """
    stored = meta.get("spec") or {}
    data = spec_to_dict(loaded.spec)
    given = loaded.explicit
    given_model = given.get("model") or {}
    for name, value in without_paths(stored.get("model") or {}).items():
        if name not in given_model:
            data["model"][name] = value
        elif isinstance(value, Mapping):  # a section: what the user said of it, and the rest as it was
            data["model"][name] = {**value, **given_model[name]}
    stored_dataset, given_dataset = stored.get("dataset") or {}, given.get("dataset") or {}
    for name in DEPLOYED_DATASET:
        if name in stored_dataset and given_dataset.get(name) is None:
            data["dataset"][name] = stored_dataset[name]
    stored_sizes, given_sizes = stored_dataset.get("augmentation") or {}, given_dataset.get("augmentation") or {}
    sizes = data["dataset"]["augmentation"]
    if data["model"]["arch"] == "rfdetr":  # sizes that nobody gave follow from the checkpoint's model.rfdetr
        sizes = {name: value for name, value in sizes.items() if name in given_sizes or name not in SIZE_FIELDS}
        data["dataset"]["augmentation"] = sizes
    for name in DEPLOYED_AUGMENTATION:
        if name in stored_sizes and name not in given_sizes:
            sizes[name] = stored_sizes[name]
    return spec_from_dict(data)
