"""RT-DETR weights of the Hugging Face Hub by name: `rtdetr_r18vd`, `PekingU/rtdetr_r18vd`, or any id of a model."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from pathlib import Path

from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.formats.table import format_by_suffix
from rtdetr_tool.messages import first_line

logger = logging.getLogger(__name__)

# The directories of the authors, whose weights are published under Apache-2.0.
_NAMES = (
    "rtdetr_r18vd", "rtdetr_r34vd", "rtdetr_r50vd", "rtdetr_r101vd",
    "rtdetr_v2_r18vd", "rtdetr_v2_r34vd", "rtdetr_v2_r50vd", "rtdetr_v2_r101vd",
)  # fmt: skip
HUB_LICENSE = "Apache-2.0"
HUB_NAMES: dict[str, str] = {name.replace("_v2", "v2"): f"PekingU/{name}" for name in _NAMES}
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PAGE = re.compile(rf"https://huggingface\.co/({_ID.pattern})/?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILES = ("config.json", "preprocessor_config.json", "model.safetensors", "pytorch_model.bin")
_WEIGHTS = _FILES[2:]


def hub_id(name: str | os.PathLike[str]) -> str | None:
    """The id on the Hub for a name or the address of a model's page; None for a path or file name."""
    text = os.fspath(name)
    if page := _PAGE.fullmatch(text):
        return page[1]
    if text in HUB_NAMES:
        return None if Path(text).exists() else HUB_NAMES[text]
    is_path = Path(text).exists() or Path(text).parent.is_dir() or format_by_suffix(text) is not None
    return text if _ID.fullmatch(text) and not is_path else None


def cached_directory(name: str) -> Path | None:
    """The directory of a model of the Hub in huggingface_hub's cache; None if its weights are not there."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(_FILES), local_files_only=True))
    except Exception as error:  # it is not in the cache; the library's errors have no common base class
        logger.debug("%s is not in the cache: %s", name, error)
        return None
    return folder if any((folder / file).is_file() for file in _WEIGHTS) else None


def hub_directory(name: str) -> Path:
    """The directory of a model of the Hub in huggingface_hub's cache, after a download if it is not there.

    Raises:
        CheckpointError: there is no such model, or it cannot be downloaded, or its weights are corrupted.
    """
    from huggingface_hub import snapshot_download

    if folder := cached_directory(name):
        return folder
    logger.info("Downloading %s from the Hugging Face Hub", name)
    try:
        folder = Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except Exception as error:
        raise CheckpointError(
            f"{name} does not exist here and could not be downloaded from the Hugging Face Hub: {first_line(error)}. "
            "Expected the path of a file or directory, or the id of a model of transformers, such as "
            f"{HUB_NAMES['rtdetr_r18vd']}"
        ) from error
    verify(folder)
    return folder


def verify(folder: Path) -> None:
    """Check the SHA-256 of downloaded weights, which is the name of their file in the library's cache.

    Raises:
        CheckpointError: the content has another hash.
    """
    for file in (folder / name for name in _WEIGHTS):
        stored = file.resolve()
        if stored.is_file() and _SHA256.fullmatch(stored.name):
            with stored.open("rb") as stream:
                actual = hashlib.file_digest(stream, "sha256").hexdigest()
            if actual != stored.name:
                raise CheckpointError(
                    f"{stored} is corrupted: its SHA-256 is {actual}; expected {stored.name}. Delete it to download it "
                    "again"
                )


def local_path(path: str | os.PathLike[str]) -> Path:
    """The path itself, or the directory of the model of the Hub with this name."""
    name = hub_id(path)
    return Path(path) if name is None else hub_directory(name)
