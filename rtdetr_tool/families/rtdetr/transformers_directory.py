"""Write a detector as a directory of Hugging Face transformers: configuration, weights and image processor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtdetr_tool.checkpoints.transformers_files import (
    CONFIG,
    PREPROCESSOR,
    WEIGHTS,
    counts_batches_of_backbone,
    position_notes,
    preprocessor_for,
    write_directory,
)
from rtdetr_tool.checkpoints.transformers_names import without_unused_layers
from rtdetr_tool.families.rtdetr.transformers_config import (
    V2,
    config_for,
    freezes_norms,
    version_for,
)
from rtdetr_tool.families.rtdetr.transformers_names import to_transformers_file

FILES = (CONFIG, PREPROCESSOR, WEIGHTS)

_LAYERS = ("decoder.decoder.layers.", "decoder.dec_score_head.", "decoder.dec_bbox_head.")


def write_transformers(target: Path, weights: Mapping[str, Tensor], meta: Mapping[str, Any]) -> list[str]:
    """Write the three files; returns messages about parts that cannot be converted.

    Args:
        weights: the detector's weights with our names.
        meta: our metadata with a complete `spec`.

    Raises:
        CheckpointError: the detector has parts that transformers' RT-DETR does not support.
    """
    model, dataset = dict(meta["spec"]["model"]), meta["spec"]["dataset"]
    kept, model["dec_layers"], notes = without_unused_layers(
        weights, model["dec_layers"], model["eval_idx"], _LAYERS, "model"
    )
    version = V2 if (meta.get("origin") or {}).get("version") == 2 else version_for(model)
    names = {entry["index"]: entry["name"] for entry in meta["classes"]}
    config = config_for(model, names, dataset["num_classes"], version)
    preprocessor, more = preprocessor_for(dataset["augmentation"])
    notes += position_notes(model.get("pe_order", "columns"), "model.pe_order", dataset["augmentation"])
    frozen = freezes_norms(model)
    tensors = to_transformers_file(
        {name: tensor for name, tensor in kept.items() if not (frozen and counts_batches_of_backbone(name))},
        _point_shares(model) if version == V2 else None,
    )
    write_directory(target, tensors, {CONFIG: config, PREPROCESSOR: preprocessor})
    return [*notes, *more]


def _point_shares(model: Mapping[str, Any]) -> Tensor:
    points = model["num_points"][0]
    return torch.full((points * model["num_feature_levels"],), 1 / points)
