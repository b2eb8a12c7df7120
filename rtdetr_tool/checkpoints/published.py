"""Weights by their published name: where they are kept, how they get there, and what their licence asks."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from rtdetr_tool.catalog import PUBLISHED_WEIGHTS, RESTRICTED, PublishedWeights
from rtdetr_tool.checkpoints.download import download, md5_of, shown
from rtdetr_tool.errors import CheckpointError, DownloadError

logger = logging.getLogger(__name__)

_SUFFIXES = ("", ".pth", ".pt")


def published(name: str | os.PathLike) -> PublishedWeights | None:
    """The row of a published name (`rf-detr-nano` or `rf-detr-nano.pth`, without a folder), else None."""
    text = os.fspath(name)
    return next((PUBLISHED_WEIGHTS[text + end] for end in _SUFFIXES if text + end in PUBLISHED_WEIGHTS), None)


def cache_folder() -> Path:
    """Where downloaded weights lie: `$RF_HOME`, else `rtdetr` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if os.environ.get("RF_HOME"):
        return Path(os.environ["RF_HOME"]).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "rtdetr"


def weights_path(name: str | os.PathLike) -> Path:
    """The file that `name` stands for: itself, or that of a published name in the cache, downloaded when missing.

    Raises:
        CheckpointError: a published file cannot be had, or is not the published one. It says what to put where.
    """
    row = published(name)
    if row is None or Path(name).exists():
        return Path(name)
    path = cache_folder() / row.file
    if not path.exists():
        _get(row, path)
    elif row.md5 is not None and (found := md5_of(path)) != row.md5:
        raise CheckpointError(
            f"{path} is not the published {row.file}: its MD5 is {found}, published is {row.md5}. Delete it to have it "
            "downloaded again; weights of your own go by their path."
        )
    return path


def check_licence(source: str, licence: str, accepted: bool) -> None:
    """Say what licence weights are under; CheckpointError when it must be accepted and is not."""
    if licence not in RESTRICTED:
        logger.info("%s: weights as published are under %s", source, licence)
        return
    if not accepted:
        raise CheckpointError(
            f"{source}: weights of this variant are published under {RESTRICTED[licence].title} ({licence}), which "
            f"restricts their use. Read it; if you accept it, set {_acceptance(licence)}."
        )
    title, field = RESTRICTED[licence]
    logger.warning("%s: under %s (%s), accepted with %s", source, title, licence, field.rpartition(".")[2])


def _acceptance(licence: str) -> str:
    field = RESTRICTED[licence].accepted_by
    return f"{field}=true (in Python: {field.rpartition('.')[2]}=True)"


def _get(row: PublishedWeights, path: Path) -> None:
    if row.url is None:
        raise CheckpointError(
            f"{row.file} is published under {RESTRICTED[row.licence].title} ({row.licence}) and is not downloaded by "
            f"this tool. Where you have it under that licence, put it at {path}, or give its path, and set "
            f"{_acceptance(row.licence)}."
        )
    logger.info("Downloading %s (licence %s) from %s to %s", row.file, row.licence, shown(row.url), path.parent)
    try:
        download(row.url, path, md5=row.md5)
    except DownloadError as error:
        raise CheckpointError(
            f"{row.file} is not here and could not be downloaded: {error}. Without a network, get {row.url} elsewhere "
            f"and put it at {path} (MD5 {row.md5}); or give the path of a weights file."
        ) from error
