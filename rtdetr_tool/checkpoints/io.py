"""Reading and writing weight files: the only `torch.load` and the only save of the package.

A file of ours is a Lightning checkpoint plus `tao_model: "rtdetr"` and `rtdetr_tool: {version, spec, classes, weights,
metrics}` (`metadata.py`). Its `state_dict` carries TAO's prefix `model.model.` before the detector's own names.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtdetr_tool.checkpoints.inert import stand_ins
from rtdetr_tool.checkpoints.layout import TAO_MODEL, TAO_PREFIX, detector_weights
from rtdetr_tool.checkpoints.limits import check_archive, check_content
from rtdetr_tool.checkpoints.metadata import KEY
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.files import parse_json, remove_unfinished, replacing

_REFUSED_GLOBAL = re.compile(r"(?:GLOBAL|global|class|instantiate) [`'\"]?([\w.]+\.[\w.]+)")
_ZIP_MAGIC = b"PK\x03\x04"


def save_checkpoint(payload: Mapping[str, Any], path: str | os.PathLike) -> Path:
    """Write so that `path` holds either its old content or the whole new one, also after a crash or a power cut.

    On failure the old file stays as it was and no temporary file is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(dict(payload), file)
    return path


def save_detector(weights: Mapping[str, Tensor], meta: Mapping[str, Any], path: str | os.PathLike) -> Path:
    """A checkpoint of ours with weights (by our names) and metadata only; `.safetensors` or, else, PyTorch's format."""
    path = Path(path)
    remove_unfinished(path)
    if path.suffix != ".safetensors":
        named = {f"{TAO_PREFIX}{name}": tensor for name, tensor in weights.items()}
        return save_checkpoint({"state_dict": named, **TAO_MODEL, KEY: dict(meta)}, path)
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, temporary, {KEY: json.dumps(meta)})
    return path


def load_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read a `.pth`, `.pt`, `.ckpt` or `.safetensors` file to the CPU; nothing in it can run code.

    A safetensors file gives `{"state_dict": ..., "rtdetr_tool": ...}` like the others (the second from its header).
    """
    path = Path(path)
    _check_readable(path)
    payload = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    check_content(payload, path)
    if not isinstance(payload, Mapping):
        raise CheckpointError(
            f"{path} holds {_article(type(payload).__name__)} instead of a dictionary of weights; "
            "save `model.state_dict()`, not the model itself."
        )
    return dict(payload)


def read_weights(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The detector's weights by our own names, and our metadata (None for a file that is not ours).

    Takes every detector that `layout.identify` knows; `detector_file.read_detector` says more about those of others.
    """
    payload = load_checkpoint(path)
    meta = payload.get(KEY)
    return detector_weights(payload, source=str(path)), dict(meta) if isinstance(meta, Mapping) else None


def _check_readable(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory; a checkpoint file is expected.")
    if path.is_symlink() and not path.exists():
        raise CheckpointError(f"{path} is a link to {os.readlink(path)}, which does not exist.")
    if not path.exists():
        raise CheckpointError(f"There is no checkpoint at {path}.{_neighbours(path)}")
    if not path.is_file():
        raise CheckpointError(f"{path} is a pipe, socket or device; a checkpoint file is expected.")
    if not os.access(path, os.R_OK):
        raise CheckpointError(f"{path} cannot be read (permission denied).")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes): an interrupted copy or download?")


def _neighbours(path: Path) -> str:
    """Names what weight files the same folder does hold."""
    folder = path.parent
    if not folder.is_dir():
        return f" The folder {folder} does not exist either."
    found = sorted(file.name for file in folder.iterdir() if file.suffix in (".pth", ".pt", ".ckpt", ".safetensors"))
    return f" {folder} holds: {', '.join(found[:5])}{', ...' if len(found) > 5 else ''}." if found else ""


def _read_pickle(path: Path) -> Any:
    check_archive(path)
    try:
        with stand_ins(path):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        IndexError,
        OSError,
        MemoryError,
        OverflowError,
        AssertionError,
        struct.error,
        zipfile.BadZipFile,
    ) as error:
        raise CheckpointError(_explain(path, error)) from error


def _explain(path: Path, error: Exception) -> str:
    """Turn torch's loading errors into what happened to this file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4)
    if head == _ZIP_MAGIC and not zipfile.is_zipfile(path):
        return f"{path} is cut short or damaged ({size} bytes; its end is missing): an interrupted copy or download?"
    text = str(error)
    refused = _REFUSED_GLOBAL.search(text)
    if isinstance(error, pickle.UnpicklingError) and refused and "weights" in text.lower():
        return (
            f"{path} was refused: besides weights it asks Python to use {refused.group(1)!r}, which can run code. "
            "Nothing of it was executed. Ask for a file with weights only (a state dict, or .safetensors)."
        )
    if head == _ZIP_MAGIC:
        return f"{path} is damaged or is no PyTorch checkpoint ({size} bytes): {_first_line(text)}"
    return f"{path} is not a PyTorch checkpoint ({size} bytes, starts with {head!r}), or it is cut short."


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
            header = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no safetensors file, or it is damaged: {_first_line(str(error))}") from error
    payload: dict[str, Any] = {"state_dict": weights}
    if KEY in header:
        try:
            payload[KEY] = parse_json(header[KEY])
        except ValueError as error:
            raise CheckpointError(f"The header of {path} is damaged: {error}") from error
    return payload


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:200] if text.strip() else "no reason given"


def _article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"
