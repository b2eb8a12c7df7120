"""Check that a weights file can be read, without torch, so that a missing one is reported at once."""

from __future__ import annotations

import os
from pathlib import Path

from rtdetr_tool.errors import CheckpointError, MissingCheckpoint
from rtdetr_tool.messages import first_of

_SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")


def check_readable(path: Path) -> None:
    """CheckpointError unless `path` is a file with content that may be read."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory; expected a checkpoint file.")
    if path.is_symlink() and not path.exists():
        raise MissingCheckpoint(f"{path} is a link to {os.readlink(path)}, which does not exist.")
    if not path.exists():
        raise MissingCheckpoint(f"{path} does not exist.{weight_files_nearby(path)}")
    if not path.is_file():
        raise CheckpointError(f"{path} is a pipe, socket or device; expected a checkpoint file.")
    if not os.access(path, os.R_OK):
        raise CheckpointError(f"{path} cannot be read (permission denied).")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes), maybe after an interrupted copy or download.")


def is_name(text: str) -> bool:
    """Whether `text` can stand for weights that are not a local path: published, of the Hugging Face Hub, or timm's."""
    from rtdetr_tool.checkpoints.hub import hub_id
    from rtdetr_tool.checkpoints.published import published

    return text.partition("/")[0] == "timm" or published(text) is not None or hub_id(text) is not None


def check_exists(text: str) -> None:
    """MissingCheckpoint if `text` is neither a path that exists nor a name of weights."""
    if not os.path.lexists(text) and not is_name(text):
        raise MissingCheckpoint(f"{text} does not exist.{weight_files_nearby(Path(text))}")


def weight_files_nearby(path: Path) -> str:
    """The weight files in the folder of a missing file, for its message."""
    folder = path.parent
    if not folder.is_dir():
        return f" The folder {folder} does not exist either."
    files = sorted(file.name for file in folder.iterdir() if file.suffix in _SUFFIXES)
    return f" The weight files in {folder} are {first_of(files)}." if files else ""
