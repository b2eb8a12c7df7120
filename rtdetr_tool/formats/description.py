"""The description in a deployed file (ONNX, TFLite, engine), as plain data.

For users and other tools: `names` (class index -> name), `input_size`, `preserve_aspect_ratio`, `normalisation`,
`rtdetr_version`, `spec_sha256`, `notes`; and for this package `rtdetr_tool`, as in a checkpoint but without
paths.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from rtdetr_tool.catalog import LAYOUTS
from rtdetr_tool.checkpoints.metadata import KEY, without_paths
from rtdetr_tool.checkpoints.recorded_fields import names_in
from rtdetr_tool.files import parse_json
from rtdetr_tool.formats.graph_interface import ADDED_BACKGROUND
from rtdetr_tool.ops.pixels import IMAGENET_MEAN, IMAGENET_STD, statistics
from rtdetr_tool.redaction import mask_secrets

ROBOFLOW_NOTES = "rfdetr_notes"  # the key of notes in files of Roboflow's package
_TEXTS = frozenset({"notes", ROBOFLOW_NOTES, "rtdetr_version", "spec_sha256", "normalisation"})  # never JSON


def normalization(normalised: bool, channels: int = 3) -> str:
    """The pixels that a file expects, by `Layout.normalised` and number of channels."""
    images = "RGB" if channels == 3 else f"{channels} channel{'s' * (channels > 1)}"
    if not normalised:
        return f"{images}, float32, pixel / 255 (0..1), no mean, no standard deviation"
    mean, deviation = (" ".join(map(str, statistics(values, channels))) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return f"{images}, float32, (pixel / 255 - mean) / deviation, mean {mean}, deviation {deviation}"


def describe(
    meta: Mapping[str, Any],
    size: tuple[int, int],
    notes: str | None = None,
    layout: str = "tao",
    background_added: bool = False,
) -> dict[str, Any]:
    """The description of an exported detector.

    Args:
        meta: the metadata of a checkpoint (see `metadata.py`).
        size: (height, width) of the input.
        background_added: the file has one more class score than the model.
    """
    spec = meta.get("spec") or {}
    dataset = spec.get("dataset") or {}
    sizes = dataset.get("augmentation") or {}
    kept = {
        "model": without_paths(spec.get("model") or {}),
        "dataset": {
            **{name: dataset[name] for name in names_in("dataset") if name in dataset},
            "augmentation": {name: sizes[name] for name in names_in("dataset.augmentation") if name in sizes},
        },
    }
    description = {
        "names": {str(entry["index"]): entry["name"] for entry in meta["classes"]},
        "input_size": list(size),
        "preserve_aspect_ratio": bool(sizes.get("preserve_aspect_ratio", False)),
        "normalisation": normalization(LAYOUTS[layout].normalised, (spec.get("model") or {}).get("num_channels", 3)),
        ADDED_BACKGROUND: background_added,
        "rtdetr_version": meta.get("version", ""),
        "spec_sha256": hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest(),
        "notes": mask_secrets(notes or ""),
        **({ROBOFLOW_NOTES: mask_secrets(notes)} if notes and layout == "rfdetr" else {}),
        KEY: {**{name: meta[name] for name in ("version", "format", "weights") if name in meta}, "spec": kept,
              "classes": [dict(entry) for entry in meta["classes"]]},
    }  # fmt: skip
    return description


def to_texts(description: Mapping[str, Any]) -> dict[str, str]:
    """A description for files whose metadata are texts by key: texts unchanged, everything else as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in description.items()}


def from_texts(texts: Mapping[str, str]) -> dict[str, Any]:
    """The inverse of `to_texts`; metadata of other programs remain texts."""
    description: dict[str, Any] = {}
    for key, value in texts.items():
        try:
            description[key] = value if key in _TEXTS else parse_json(value)
        except ValueError:
            description[key] = value
    return description
