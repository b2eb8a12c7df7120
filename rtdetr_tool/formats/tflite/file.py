"""TFLite files of detectors: what they say of themselves (`description`), and whether they are any.

The description is a file `metadata.json` in a zip archive behind the model, as TFLite's own metadata are attached:
`unzip -p model.tflite metadata.json` shows it, and interpreters do not look there.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.files import open_regular, parse_json

METADATA = "metadata.json"
LARGEST_METADATA = 2**24  # bytes; ours have some thousand
_MARK = slice(4, 8), b"TFL3"  # of the file format, behind the offset of the model


def read_tflite(path: str | Path) -> dict[str, Any]:
    """The description of a file; empty where others wrote it.

    Raises:
        CheckpointError: it is missing, unreadable or no TFLite file.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            start = file.read(8)
            if start[_MARK[0]] != _MARK[1]:
                size = path.stat().st_size
                raise CheckpointError(f"{path} is not a TFLite file ({size} bytes, starts with {start!r}).")
            if not zipfile.is_zipfile(file):
                return {}
            return _metadata(file)
    except FileNotFoundError:
        raise CheckpointError(f"There is no TFLite file at {path}.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


def append_description(path: Path, description: Mapping[str, Any]) -> None:
    """Put a description behind a model that has none."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(METADATA, json.dumps(dict(description)))


def _metadata(file: Any) -> dict[str, Any]:
    """Damaged or overlong metadata are none: the model may be good without them."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open(METADATA) as content:
            found = parse_json(content.read(LARGEST_METADATA))
    except (KeyError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        return {}
    return found if isinstance(found, dict) else {}
