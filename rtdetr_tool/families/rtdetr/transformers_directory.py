"""Write a detector as a directory of Hugging Face transformers: configuration, weights and image processor."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtdetr_tool.checkpoints.detector_file import CONFIG, PREPROCESSOR
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families.rtdetr.transformers_config import (
    PE_ORDER,
    V2,
    config_for,
    freezes_norms,
    preprocessor_for,
    version_for,
)
from rtdetr_tool.families.rtdetr.transformers_names import to_transformers_file
from rtdetr_tool.files import remove_unfinished, replacing, write_atomically

WEIGHTS = "model.safetensors"
FILES = (CONFIG, PREPROCESSOR, WEIGHTS)

_LAYER = re.compile(r"^decoder\.(?:decoder\.layers|dec_score_head|dec_bbox_head)\.(\d+)\.")


def write_transformers(target: Path, weights: Mapping[str, Tensor], meta: Mapping[str, Any]) -> list[str]:
    """Write the three files; what could not be carried over, in words, comes back.

    Args:
        weights: the detector's weights with our names.
        meta: our metadata with a complete `spec`.

    Raises:
        CheckpointError: the detector has parts that transformers' RT-DETR does not support.
    """
    model, dataset = dict(meta["spec"]["model"]), meta["spec"]["dataset"]
    kept, model, notes = _used_layers(weights, model)
    version = V2 if (meta.get("origin") or {}).get("version") == 2 else version_for(model)
    names = {entry["index"]: entry["name"] for entry in meta["classes"]}
    config = config_for(model, names, dataset["num_classes"], version)
    preprocessor, more = preprocessor_for(dataset["augmentation"])
    notes += _position_notes(model, dataset["augmentation"])
    frozen = freezes_norms(model)
    tensors = to_transformers_file(
        {name: tensor for name, tensor in kept.items() if not (frozen and _counter_of_backbone(name))},
        _point_shares(model) if version == V2 else None,
    )
    _write(target, tensors, {CONFIG: config, PREPROCESSOR: preprocessor})
    return [*notes, *more]


def _write(folder: Path, tensors: Mapping[str, Tensor], texts: Mapping[str, Mapping[str, Any]]) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, *texts):
        remove_unfinished(folder / name)
    with replacing(folder / WEIGHTS) as temporary:
        save_file(dict(tensors), temporary, {"format": "pt"})
    for name, content in texts.items():  # after the weights, so that a directory with a configuration is complete
        write_atomically(folder / name, json.dumps(content, indent=2) + "\n")


def _used_layers(
    weights: Mapping[str, Tensor], model: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """Weights without decoder layers after `eval_idx`, because transformers predicts with the last layer."""
    used = model["dec_layers"] if model["eval_idx"] < 0 else model["eval_idx"] + 1
    if used == model["dec_layers"]:
        return dict(weights), model, []
    kept = {name: t for name, t in weights.items() if not (found := _LAYER.match(name)) or int(found[1]) < used}
    note = f"skipped decoder layers {used} to {model['dec_layers'] - 1}, which model.eval_idx does not use"
    return kept, {**model, "dec_layers": used}, [note]


def _position_notes(model: Mapping[str, Any], augmentation: Mapping[str, Any]) -> list[str]:
    """Warnings about a position embedding in another order than that of transformers.

    Raises:
        CheckpointError: transformers would return other results for the input size of the detector.
    """
    if model.get("pe_order", "columns") == PE_ORDER:
        return []
    height, width = augmentation["eval_spatial_size"]
    if height != width and not augmentation.get("preserve_aspect_ratio"):
        raise CheckpointError(
            f"model.pe_order is columns and the input size is {height} x {width}, but transformers orders the position "
            "embedding by rows, so the converted detector would return other results on inputs that are not square. "
            "Convert it for a square input (dataset.augmentation.eval_spatial_size), or train with model.pe_order=rows."
        )
    return [
        "transformers orders the position embedding by rows, but this detector by columns (model.pe_order), so results "
        "are only the same on square inputs"
    ]


def _counter_of_backbone(name: str) -> bool:
    """Whether this is a counter of batches, which frozen norms of transformers' backbones do not have."""
    return name.startswith("backbone.") and name.endswith("num_batches_tracked")


def _point_shares(model: Mapping[str, Any]) -> Tensor:
    points = model["num_points"][0]
    return torch.full((points * model["num_feature_levels"],), 1 / points)
