"""From a file to a runtime.

A checkpoint of ours knows its architecture, classes and input size; the spec may not contradict it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rtdetr_tool.checkpoints.io import read_weights
from rtdetr_tool.checkpoints.loading import load_into
from rtdetr_tool.checkpoints.metadata import check_against
from rtdetr_tool.data.classes import ClassMap
from rtdetr_tool.errors import UserError
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.runtimes.base import Runtime
from rtdetr_tool.runtimes.torch_runtime import TorchRuntime
from rtdetr_tool.spec import ExperimentSpec, LoadedSpec, spec_from_dict, spec_to_dict

logger = logging.getLogger(__name__)

WEIGHT_SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")

# Fields of `dataset` that a checkpoint was trained with and that hold for it unless the user says otherwise.
REMEMBERED = ("num_classes", "class_ids", "remap_mscoco_category")
REMEMBERED_AUGMENTATION = ("eval_spatial_size", "preserve_aspect_ratio")


@dataclass
class OpenedModel:
    """A runtime and the spec that holds for it: the user's, completed by what the file knows."""

    runtime: Runtime
    spec: ExperimentSpec


def open_model(path: str, loaded: LoadedSpec, device: torch.device | str = "cpu") -> OpenedModel:
    """Open a weights file.

    Raises:
        UserError: for a file no runtime of this version can run.
        CheckpointError: for a damaged or foreign file, or one the spec contradicts.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in WEIGHT_SUFFIXES:
        raise UserError(
            f"{path} cannot be run: a file ending in {', '.join(WEIGHT_SUFFIXES)} is expected "
            "(ONNX files and TensorRT engines are not part of this version)"
        )
    weights, meta = read_weights(path)
    spec, class_map = loaded.spec, None
    if meta is not None:
        check_against(loaded.spec, meta, source=str(path), explicit=loaded.explicit)
        spec = complete_spec(loaded, meta)
        class_map = ClassMap.from_list(meta["classes"], spec.dataset.num_classes)
        kind = "averaged (EMA)" if meta.get("weights") == "ema" else "trained"
        logger.info("%s: %s weights of %s, %d classes", path, kind, spec.model.backbone, len(class_map))
    else:
        logger.warning("%s does not say what it was trained with: the spec gives architecture and classes", path)
    detector = build_detector(spec.model, spec.dataset.num_classes)
    load_into(detector, weights, source=str(path))
    return OpenedModel(TorchRuntime(detector, class_map, device), spec)


def complete_spec(loaded: LoadedSpec, meta: Mapping[str, Any]) -> ExperimentSpec:
    """The user's spec where it says something; elsewhere the checkpoint's architecture, classes and sizes."""
    stored = meta.get("spec") or {}
    data = spec_to_dict(loaded.spec)
    given = loaded.explicit
    for name, value in (stored.get("model") or {}).items():
        if name not in (given.get("model") or {}):
            data["model"][name] = value
    stored_dataset, given_dataset = stored.get("dataset") or {}, given.get("dataset") or {}
    for name in REMEMBERED:
        if name in stored_dataset and name not in given_dataset:
            data["dataset"][name] = stored_dataset[name]
    stored_sizes, given_sizes = stored_dataset.get("augmentation") or {}, given_dataset.get("augmentation") or {}
    for name in REMEMBERED_AUGMENTATION:
        if name in stored_sizes and name not in given_sizes:
            data["dataset"]["augmentation"][name] = stored_sizes[name]
    return spec_from_dict(data)
