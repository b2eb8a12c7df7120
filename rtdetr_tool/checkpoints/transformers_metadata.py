"""The metadata of files of RT-DETR and the detectors built on it, from tensors and transformers' JSON files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rtdetr_tool.checkpoints.detector_file import DIRECTORY_WEIGHTS, DetectorFile
from rtdetr_tool.checkpoints.family_weights import FileContents
from rtdetr_tool.checkpoints.metadata import build_metadata
from rtdetr_tool.checkpoints.transformers_files import CONFIG, PREPROCESSOR, class_names, input_fields, read_json

TRANSFORMERS = "transformers"  # the kind of these files


def read_configs(contents: FileContents) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration and the image processor next to the weights of a transformers model; {} for a missing file.

    Raises:
        CheckpointError: a directory has no configuration, or a file cannot be read.
    """
    if contents.identified.kind != TRANSFORMERS or contents.path.name not in DIRECTORY_WEIGHTS:
        return {}, {}
    folder = contents.path.parent
    return read_json(folder / CONFIG, required=contents.from_directory), read_json(folder / PREPROCESSOR)


def fill_metadata(
    file: DetectorFile,
    contents: FileContents,
    model: Mapping[str, Any],
    num_classes: int,
    config: Mapping[str, Any],
    preprocessor: Mapping[str, Any],
) -> None:
    """Set `meta` and `notes` of a file; `model` has the fields that it determines."""
    identified = contents.identified
    dataset: dict[str, Any] = {"num_classes": num_classes}
    if preprocessor:
        dataset["augmentation"], file.notes = input_fields(preprocessor)
    names = sorted(class_names(config).items())
    classes = [{"index": index, "id": None, "name": name} for index, name in names if index < num_classes]
    weights = "ema" if identified.averaged else "raw"
    file.meta = build_metadata("", {"model": model, "dataset": dataset}, classes, weights)
    file.meta["origin"] = {"format": identified.kind, "version": identified.version}
