"""Read and write weight files. This is the only module of the package that calls `torch.load` and `torch.save`.

Our checkpoints are Lightning checkpoints with `tao_model: "rtdetr"` and `rtdetr_tool: {version, spec, classes, weights,
metrics}` (`metadata.py`). In their `state_dict` the detector's names have TAO's prefix `model.model.`.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import struct
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from rtdetr_tool.checkpoints.identify import TAO_MODEL, TAO_PREFIX, detector_weights
from rtdetr_tool.checkpoints.limits import check_archive, check_content
from rtdetr_tool.checkpoints.metadata import KEY
from rtdetr_tool.checkpoints.safe_unpickle import known_settings_allowed
from rtdetr_tool.checkpoints.weights_exist import check_readable
from rtdetr_tool.errors import CheckpointError, Preempted
from rtdetr_tool.files import parse_json, remove_unfinished, replacing
from rtdetr_tool.messages import first_line

_REFUSED_GLOBAL = re.compile(r"(?:GLOBAL|global|class|instantiate) [`'\"]?([\w.]+\.[\w.]+)")
_ZIP_MAGIC = b"PK\x03\x04"


def save_checkpoint(payload: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write atomically: `path` has either its old or its complete new content, even after a crash or a power failure.

    On failure the old file is unchanged and no temporary file remains. Ctrl-C and other signals take
    effect when the file is complete.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _signals_deferred(), replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(dict(payload), file)
    return path


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Handle a signal that ends the run at the end of the block, or a second one at once.

    An exception of a handler within a write of `torch.save` becomes a RuntimeError, or ends the process with SIGABRT
    when the writer is deleted after its file was closed.
    """
    found = {number: signal.getsignal(number) for number in (*Preempted.signals, signal.SIGINT)}
    handlers = {number: handler for number, handler in found.items() if callable(handler)}
    if not handlers or threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[tuple[int, FrameType | None]] = []

    def defer(number: int, frame: FrameType | None) -> None:
        received.append((number, frame))
        if len(received) > 1:
            handlers[number](number, frame)

    try:
        for number in handlers:
            signal.signal(number, defer)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if received:
        number, frame = received[0]
        handlers[number](number, frame)


def save_detector(weights: Mapping[str, Tensor], meta: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write weights (with our names) and metadata only, as safetensors or, for other suffixes, in PyTorch's format."""
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


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a `.pth`, `.pt`, `.ckpt` or `.safetensors` file to the CPU without running code from it.

    Safetensors files return `{"state_dict": ..., "rtdetr_tool": ...}` like the others; the metadata is in their header.
    """
    path = Path(path)
    check_readable(path)
    payload = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    check_content(payload, path)
    if not isinstance(payload, Mapping):
        raise CheckpointError(
            f"{path} contains {_article(type(payload).__name__)}; expected a dictionary of weights. "
            "Save `model.state_dict()`, not the model itself."
        )
    return dict(payload)


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The detector's weights under our names, and our metadata (None for files of other programs).

    Accepts every format that `identify.identify` knows. `detector_file.read_detector` also describes the architecture.
    """
    payload = load_checkpoint(path)
    meta = payload.get(KEY)
    return detector_weights(payload, source=str(path)), dict(meta) if isinstance(meta, Mapping) else None


def _read_pickle(path: Path) -> Any:
    check_archive(path)
    try:
        with known_settings_allowed(path):
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
    """Explain a loading error of torch in terms of the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4)
    if head == _ZIP_MAGIC and not zipfile.is_zipfile(path):
        return f"{path} is truncated or corrupted ({size} bytes), maybe by an interrupted copy or download."
    text = str(error)
    refused = _REFUSED_GLOBAL.search(text)
    if isinstance(error, pickle.UnpicklingError) and refused and "weights" in text.lower():
        return (
            f"{path} was refused, because loading it would use {refused.group(1)!r}, which can run code. "
            "Nothing was executed. Use a file with weights only (a state dict or .safetensors)."
        )
    if head == _ZIP_MAGIC:
        return f"{path} is corrupted or not a PyTorch checkpoint ({size} bytes): {first_line(error)}"
    return f"{path} is not a valid PyTorch checkpoint ({size} bytes, starts with {head!r}), or it is truncated."


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
            header = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a valid safetensors file: {first_line(error)}") from error
    payload: dict[str, Any] = {"state_dict": weights}
    if KEY in header:
        try:
            payload[KEY] = parse_json(header[KEY])
        except ValueError as error:
            raise CheckpointError(f"{path} has an invalid header: {error}") from error
    return payload


def _article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"
