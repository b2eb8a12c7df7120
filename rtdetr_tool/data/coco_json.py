"""Read the JSON of COCO files, within limits and with garbage collection paused."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rtdetr_tool.catalog import BOXES, KEYPOINTS, MASKS
from rtdetr_tool.data.faults import retried
from rtdetr_tool.errors import DataError, MissingData
from rtdetr_tool.files import read_limited
from rtdetr_tool.ops.masks import compact

LARGEST_FILE = 8 << 30  # bytes; COCO's files have 0.5 GB, those of Objects365 less than 5


def load_json(path: str, kind: str = BOXES) -> dict[str, Any]:
    """The object in a JSON file; DataError for anything else.

    Masks and keypoints are dropped while parsing unless `kind` asks for them: they take most of the memory.

    The text is UTF-8, UTF-16 or UTF-32, with or without a byte order mark.
    """
    try:
        with without_garbage_collection():
            content = json.loads(_read_text(path), object_hook=_HOOKS[kind])
    except RecursionError as error:
        raise DataError(f"Annotation file {path} is nested too deeply for a COCO file.") from error
    except DataError:
        raise
    except ValueError as error:  # JSONDecodeError, or a number of thousands of digits
        raise DataError(f"Annotation file {path} is not valid JSON or is truncated: {error}.") from error
    if not isinstance(content, dict):
        raise DataError(
            f"Annotation file {path} contains {json_kind(content)}; expected an object with images, annotations and "
            "categories" + (" (this looks like a detection results file)." if isinstance(content, list) else ".")
        )
    return content


def _read_text(path: str) -> str:
    try:
        data = retried(lambda: read_limited(path, LARGEST_FILE), path)
        text = data.decode(json.detect_encoding(data))
    except FileNotFoundError as error:
        raise MissingData(f"Annotation file not found: {path}") from error
    except OSError as error:
        raise DataError(f"Cannot read annotation file {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"Annotation file {path} is not valid UTF-8 ({error.reason} at byte {error.start}). If it has another "
            "encoding, convert it, for example: iconv -f latin1 -t utf-8"
        ) from error
    if not text.strip("\ufeff\0 \t\r\n"):
        raise DataError(f"Annotation file {path} is empty.")
    return text


def _boxes_only(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("segmentation", None)
    entry.pop("keypoints", None)
    return entry


def _with_keypoints(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("segmentation", None)
    return entry


def _with_compact_masks(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("keypoints", None)
    if "segmentation" in entry:
        entry["segmentation"] = compact(entry["segmentation"])
    return entry


_HOOKS = {BOXES: _boxes_only, MASKS: _with_compact_masks, KEYPOINTS: _with_keypoints}


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Pause garbage collection, which would repeatedly scan millions of new objects without finding garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def json_kind(value: Any) -> str:
    """The JSON type of a value, with its article."""
    names = {list: "a list", dict: "an object", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names[type(value)]
