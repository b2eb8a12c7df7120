"""Directories of Hugging Face transformers, as far as they are the same for RT-DETR and the detectors built on it.

A directory has weights, `config.json` and `preprocessor_config.json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.files import parse_json, read_limited, remove_unfinished, replacing, write_atomically

CONFIG, PREPROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
LARGEST_CONFIG = 16 << 20  # bytes
PE_ORDER = "rows"  # of the encoder's position embedding since version 5

_PROJECTION = re.compile(r"^(.+\.self_attn\.)([qkv])_proj\.(weight|bias)$")
_JOINED = re.compile(r"^(.+\.self_attn\.)in_proj_(weight|bias)$")


def read_json(path: Path, required: bool = False) -> dict[str, Any]:
    """The object in a JSON file; {} if there is no such file and none is required."""
    if not path.is_file():
        if required:
            raise CheckpointError(
                f"{path} does not exist, but is required for the architecture of a transformers model."
            )
        return {}
    try:
        content = parse_json(read_limited(path, LARGEST_CONFIG))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a valid JSON file: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not valid; expected a JSON object.")
    return content


def class_names(config: Mapping[str, Any]) -> dict[int, str]:
    """Class index -> name; {} if the file only has transformers' placeholders (LABEL_0, LABEL_1, ...)."""
    names = {int(index): str(name) for index, name in (config.get("id2label") or {}).items()}
    placeholders = all(name == f"LABEL_{index}" for index, name in names.items())
    return {} if placeholders else names


def label_fields(names: Mapping[int, str], num_classes: int) -> dict[str, Any]:
    """The names of the classes in a `config.json`."""
    labels = {index: names.get(index, f"class_{index}" if names else f"LABEL_{index}") for index in range(num_classes)}
    return {
        "id2label": {str(index): name for index, name in labels.items()},
        "label2id": {name: index for index, name in labels.items()},
    }


def input_fields(preprocessor: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Fields of our `dataset.augmentation` section for a `preprocessor_config.json`, and warnings about differences."""
    size, notes = preprocessor.get("size") or {}, []
    fields: dict[str, Any] = {}
    if {"height", "width"} <= set(size):
        fields["eval_spatial_size"] = [size["height"], size["width"]]
        fields["preserve_aspect_ratio"] = False
    elif size:
        notes.append(f"it was trained with images resized by the rule {dict(size)}, which is not supported")
    factor = preprocessor.get("rescale_factor", 1 / 255)
    if preprocessor.get("do_rescale") is False or not (isinstance(factor, float) and abs(factor * 255 - 1) < 1e-3):
        notes.append("it was trained on pixels that are not scaled to 0..1; here they are, so scores will be lower")
    if preprocessor.get("do_pad"):
        notes.append("it was trained on padded images; here they are not padded, so scores may be lower")
    if preprocessor.get("do_normalize"):
        notes.append("it was trained on images normalized by mean and std; here they are not, so scores will be lower")
    return fields, notes


def preprocessor_for(augmentation: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A `preprocessor_config.json` for our `dataset.augmentation` section, and warnings about differences."""
    height, width = augmentation["eval_spatial_size"]
    notes = []
    if augmentation.get("preserve_aspect_ratio"):
        notes.append("transformers stretches images, but this detector was trained with preserve_aspect_ratio")
    return {
        "image_processor_type": "RTDetrImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": False,
        "do_pad": False,
        "format": "coco_detection",
    }, notes


def unlike(config: Mapping[str, Any], fixed: Mapping[str, tuple[Any, ...]], prefix: str = "") -> list[str]:
    """One line for each option that has none of the supported values."""
    return [
        f"{prefix}{name}: {config[name]!r}; expected {' or '.join(map(repr, values))}"
        for name, values in fixed.items()
        if name in config and config[name] is not None and config[name] not in values
    ]


def write_directory(folder: Path, tensors: Mapping[str, Tensor], texts: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the weights, and each of `texts` as a JSON file."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, *texts):
        remove_unfinished(folder / name)
    with replacing(folder / WEIGHTS) as temporary:
        save_file(dict(tensors), temporary, {"format": "pt"})
    for name, content in texts.items():  # after the weights, so that a directory with a configuration is complete
        write_atomically(folder / name, json.dumps(content, indent=2) + "\n")


def position_notes(order: str, field: str, augmentation: Mapping[str, Any]) -> list[str]:
    """Warnings about a position embedding in another order than that of transformers.

    Args:
        field: the name of the field with this order, for messages.

    Raises:
        CheckpointError: transformers would return other results for the input size of the detector.
    """
    if order == PE_ORDER:
        return []
    height, width = augmentation["eval_spatial_size"]
    if height != width and not augmentation.get("preserve_aspect_ratio"):
        raise CheckpointError(
            f"{field} is columns and the input size is {height} x {width}, but transformers orders the position "
            "embedding by rows, so the converted detector would return other results on inputs that are not square. "
            f"Convert it for a square input (dataset.augmentation.eval_spatial_size), or train with {field}=rows."
        )
    return [
        f"transformers orders the position embedding by rows, but this detector by columns ({field}), so results "
        "are only the same on square inputs"
    ]


def counts_batches_of_backbone(name: str) -> bool:
    """Whether this is a counter of batches, which frozen norms of transformers' backbones do not have."""
    return name.startswith("backbone.") and name.endswith("num_batches_tracked")


def join_projections(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value projections of self-attention as one tensor each, as we have them."""
    joined: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state_dict.items():
        if match := _PROJECTION.match(name):
            parts.setdefault(f"{match[1]}in_proj_{match[3]}", {})[match[2]] = tensor
        else:
            joined[name] = tensor
    for name, projections in parts.items():
        if len(projections) != 3:
            raise CheckpointError(f"the query, key or value projection of {name.rsplit('.', 1)[0]} is missing")
        joined[name] = torch.cat([projections[part] for part in "qkv"])
    return joined


def separate_projections(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `join_projections`."""
    separate: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        if match := _JOINED.match(name):
            for part, projection in zip("qkv", tensor.chunk(3), strict=True):
                separate[f"{match[1]}{part}_proj.{match[2]}"] = projection.clone()
        else:
            separate[name] = tensor
    return separate
