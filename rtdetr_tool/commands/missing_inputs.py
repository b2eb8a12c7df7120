"""Find missing input files before torch is imported, which takes seconds.

Only what certainly ends the command is an error here. Everything else about a file is checked when it is read.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rtdetr_tool.checkpoints.weights_exist import is_name, weight_files_nearby
from rtdetr_tool.errors import MissingCheckpoint, MissingData
from rtdetr_tool.formats.table import format_by_suffix
from rtdetr_tool.messages import first_of
from rtdetr_tool.spec import ExperimentSpec
from rtdetr_tool.spec.commands import COMMANDS
from rtdetr_tool.spec.fields import is_blank
from rtdetr_tool.spec.queries import names_with
from rtdetr_tool.spec.required import results_folder
from rtdetr_tool.spec.validate import value_of

# Command -> the data sources that it reads. `validate_data` lists missing ones among its findings.
_SOURCES = {
    "train": ("train", "val"),
    "distill": ("train", "val"),
    "automl": ("train", "val"),
    "evaluate": ("test",),
    "inference": ("infer",),
    "benchmark": ("test",),
}
_SOURCE_PATHS = ("image_dir", "json_file", "dataset_dir", "video", "classmap")

# Field -> whether it is read; the others always are, if a command has their section.
_Condition = Callable[[ExperimentSpec, str], bool]
_READ_IF: dict[str, _Condition] = {
    "dataset.dataset_dir": lambda spec, command: False,  # part of the data sources
    "evaluate.checkpoint": lambda spec, command: not spec.evaluate.trt_engine,
    "inference.checkpoint": lambda spec, command: not spec.inference.trt_engine,
    "export.tflite.calibration": lambda spec, command: _is_int8(spec, "tflite"),
    "export.openvino.calibration": lambda spec, command: _is_int8(spec, "openvino"),
    "export.executorch.calibration": lambda spec, command: _is_int8(spec, "executorch"),
    "gen_trt_engine.tensorrt.calibration.cal_image_dir": lambda spec, command: (
        spec.gen_trt_engine.tensorrt.data_type == "INT8"
    ),
    "train.pretrained_model_path": lambda spec, command: _starts(spec, command),
    "train.resume_training_checkpoint_path": lambda spec, command: _trains(spec, command),
    "model.pretrained_backbone_path": lambda spec, command: (
        not spec.train.pretrained_model_path and _starts(spec, command)
    ),
    "model.frozen_fm.checkpoint": lambda spec, command: (
        spec.model.family.outside_weights(spec.model) is not None and _starts(spec, command)
    ),
}


def check_inputs(spec: ExperimentSpec, command: str) -> None:
    """MissingCheckpoint or MissingData with every input of the command that does not exist."""
    weights = [f"{name}: {path} does not exist.{_advice(name, path)}" for name, path in _files(spec, command)]
    data = [f"{name}: {path} does not exist." for name, path in _data(spec, command)]
    if weights:
        raise MissingCheckpoint("\n".join(weights + data))
    if data:
        raise MissingData("\n".join(data))


def _files(spec: ExperimentSpec, command: str) -> Iterator[tuple[str, str]]:
    sections = COMMANDS[command].sections
    for name in names_with("path", "read"):
        if name.partition(".")[0] not in sections or name.startswith("distill.teacher."):
            continue
        value = value_of(spec, name)
        for path in value if isinstance(value, list) else [value]:
            if _is_missing(path) and not is_name(path) and (name not in _READ_IF or _READ_IF[name](spec, command)):
                yield name, path


def _data(spec: ExperimentSpec, command: str) -> Iterator[tuple[str, str]]:
    for split in _splits(spec, command):
        field = f"dataset.{split}_data_sources"
        value = value_of(spec, field)
        for index, source in enumerate(value if isinstance(value, list) else [value or {}]):
            name = f"{field}[{index}]" if isinstance(value, list) else field
            for key in _SOURCE_PATHS:
                paths = source.get(key)
                for path in paths if isinstance(paths, list) else [paths]:
                    if _is_missing(path) and not (key == "video" and _is_stream(path)) and not _is_pattern(key, path):
                        yield f"{name}.{key}", path


def _splits(spec: ExperimentSpec, command: str) -> tuple[str, ...]:
    """The data sources that the command reads with this spec."""
    splits = _SOURCES.get(command, ())
    if command == "benchmark" and not spec.benchmark.score:
        return ()
    return splits if _trains(spec, command) else tuple(split for split in splits if split != "train")


def _is_missing(path: Any) -> bool:
    return isinstance(path, str) and not is_blank(path) and not os.path.lexists(path)


def _is_stream(video: str) -> bool:
    """Whether it is the URL of a stream or the number of a camera."""
    return "://" in video or video.isdigit()


def _is_pattern(key: str, path: str) -> bool:
    return key == "json_file" and glob.has_magic(path)


def _is_int8(spec: ExperimentSpec, file_format: str) -> bool:
    return spec.export.format == file_format and bool(getattr(spec.export, file_format).data_type == "INT8")


def _trains(spec: ExperimentSpec, command: str) -> bool:
    """Whether a command with the section `train` trains anything."""
    return command != "automl" or spec.automl.has_trials


def _starts(spec: ExperimentSpec, command: str) -> bool:
    """Whether a run starts from initial weights."""
    return _trains(spec, command) and not _may_resume(spec, command)


def _may_resume(spec: ExperimentSpec, command: str) -> bool:
    """Whether the run may resume from checkpoints, which makes its initial weights unnecessary."""
    folder = results_folder(getattr(spec, command), command)
    return bool(spec.train.resume_training_checkpoint_path) or any(
        name.endswith((".pth", ".json")) and name != "status.json" for name in os.listdir(folder)
    )


def _advice(name: str, path: str) -> str:
    """What is there instead, for a model."""
    if "calibration" in name or name.endswith(("thresholds_from", "classmap")):
        return ""
    row, folder = format_by_suffix(path), Path(path).parent
    if row is None or row.trainable or not folder.is_dir():
        return weight_files_nearby(Path(path))
    files = sorted(file.name for file in folder.iterdir() if file.suffix in row.suffixes)
    return f" {folder} contains {first_of(files)}." if files else ""
