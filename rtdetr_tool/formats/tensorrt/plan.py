"""Engine files: a plan built by TensorRT, and `<file>.json` next to it with its description.

The description has the metadata of the ONNX file (class names, input size, ...), `build` (versions, GPU, profile,
inputs and outputs, ...) and `engine` (size, hash and time of the plan, which identify it).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rtdetr_tool.errors import CheckpointError, UserError
from rtdetr_tool.files import parse_json, read_limited, remove_unfinished, replacing

MAGIC = b"trt"  # bytes 1 to 3 of a plan; the first byte is its kind
LARGEST_PLAN = 16 << 30  # bytes
LARGEST_DESCRIPTION = 16 << 20
FIELDS: dict[str, dict[str, type]] = {  # fields of a description that this package reads
    "build": {"backend": str, "version": str, "compute_capabilities": list},
    "engine": {"file": str, "bytes": int, "sha256": str, "built": str},
}
VERSION_AT = 24  # four bytes: major, minor, patch, build


def description_path(path: str | os.PathLike[str]) -> Path:
    """model.engine -> model.engine.json"""
    return Path(f"{os.fspath(path)}.json")


def write_engine_file(path: str | os.PathLike[str], plan: bytes, description: Mapping[str, Any]) -> None:
    """Write a plan and its description, each atomically; on failure there is no plan at `path`.

    Raises:
        UserError: the folder cannot be written.
    """
    path, companion = Path(path), description_path(path)
    engine = {
        "file": path.name,
        "bytes": len(plan),
        "sha256": hashlib.sha256(plan).hexdigest(),
        "built": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    remove_unfinished(path)
    remove_unfinished(companion)
    text = json.dumps({**description, "engine": engine}, indent=2, ensure_ascii=False) + "\n"
    new = not companion.exists()
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "it is a directory")
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as plan_file:
            plan_file.write_bytes(plan)
            with replacing(companion) as description_file:
                description_file.write_text(text, encoding="utf-8")
    except BaseException as error:
        if new:
            with contextlib.suppress(OSError):
                companion.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"the engine file {path} cannot be written: {error.strerror or error}") from error
        raise


def read_engine_file(path: str | os.PathLike[str]) -> tuple[bytes, dict[str, Any]]:
    """The plan and its description, which is empty if there is no file.

    Raises:
        CheckpointError: a file is missing, empty or corrupted, or they do not belong together.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory; expected a TensorRT engine file.")
    if not path.exists():
        raise CheckpointError(f"There is no TensorRT engine at {path}.{_neighbours(path)}")
    try:
        plan = read_limited(path, LARGEST_PLAN)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if not plan:
        raise CheckpointError(f"{path} is empty (0 bytes), maybe after an interrupted copy or download.")
    description = read_description(path)
    check_belongs(path, plan, description)
    return plan, description


def read_description(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of `<engine file>.json`; empty if there is none, as for engines of other tools."""
    companion = description_path(path)
    try:
        description = parse_json(read_limited(companion, LARGEST_DESCRIPTION))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{companion} cannot be read: {error}. Replace or delete it.") from error
    if not isinstance(description, dict):
        raise CheckpointError(f"{companion} does not describe an engine. Replace or delete it.")
    if wrong := _wrong_field(description):
        raise CheckpointError(f"{companion} does not describe an engine: {wrong}. Replace or delete it.")
    return description


def _wrong_field(description: Mapping[str, Any]) -> str | None:
    """A problem with the types in a description, or None."""
    for section, fields in FIELDS.items():
        inner = description.get(section)
        if inner is None:
            continue
        if not isinstance(inner, dict):
            return f"{section} is {type(inner).__name__}; expected an object"
        for name, kind in fields.items():
            value = inner.get(name)
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                return f"{section}.{name} is {type(value).__name__}; expected {kind.__name__}"
    targets = (description.get("build") or {}).get("compute_capabilities") or []
    if not all(isinstance(target, str) for target in targets):
        return "build.compute_capabilities contains values that are not strings"
    return None


def check_belongs(path: Path, plan: bytes, description: Mapping[str, Any]) -> None:
    """Check size and hash of a plan against its description."""
    engine = description.get("engine") or {}
    size = engine.get("bytes") or len(plan)
    if len(plan) < size:
        raise CheckpointError(
            f"{path} is truncated: {len(plan)} of {size} bytes, maybe after an interrupted copy or download."
        )
    if (engine.get("sha256") or "") not in ("", hashlib.sha256(plan).hexdigest()):
        raise CheckpointError(
            f"{description_path(path)} belongs to another engine than {path} (size or hash differ), or the engine is "
            "corrupted. Copy both files together, or build the engine again."
        )


def looks_like_plan(plan: bytes) -> bool:
    """Whether a file starts like plans of TensorRT 8 to 11 and TensorRT-RTX."""
    return plan[1:4] == MAGIC


def plan_version(plan: bytes) -> str | None:
    """The version of the library that built a plan, from its header; the format is not documented."""
    numbers = plan[VERSION_AT : VERSION_AT + 4]
    if not looks_like_plan(plan) or len(numbers) < 4 or not 1 <= numbers[0] <= 20:
        return None
    return ".".join(map(str, numbers))


def _neighbours(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f" The folder {folder} does not exist either."
    names = sorted(p.name for p in folder.iterdir() if p.suffix in (".engine", ".plan", ".trt"))
    return f" {folder} contains {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}." if names else ""
