"""Published weights by name: the download cache and the check of their licenses."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from rtdetr_tool.catalog import PUBLISHED_WEIGHTS, RESTRICTED, PublishedWeights
from rtdetr_tool.checkpoints.download import download, md5_of, public_url
from rtdetr_tool.errors import CheckpointError, DownloadError

logger = logging.getLogger(__name__)

_SUFFIXES = ("", ".pth", ".pt")


def published(name: str | os.PathLike[str]) -> PublishedWeights | None:
    """The entry of a published name (`rf-detr-nano` or `rf-detr-nano.pth`, without a folder), or None."""
    text = os.fspath(name)
    return next((PUBLISHED_WEIGHTS[text + end] for end in _SUFFIXES if text + end in PUBLISHED_WEIGHTS), None)


def cache_folder() -> Path:
    """The folder of downloaded weights: `$RF_HOME`, or else `rtdetr` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if os.environ.get("RF_HOME"):
        return Path(os.environ["RF_HOME"]).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "rtdetr"


def roboflow_folder() -> Path:
    """The folder of weights that Roboflow's package has downloaded."""
    return Path("~/.roboflow/models").expanduser().absolute()


def weights_path(name: str | os.PathLike[str]) -> Path:
    """The path `name` itself, or for a published name the path in the cache, after a download if it is missing.

    Raises:
        CheckpointError: the published file cannot be downloaded, or the cached one has another hash.
    """
    row = published(name)
    return Path(name) if row is None or Path(name).exists() else download_published(row)


def download_published(row: PublishedWeights) -> Path:
    """The path of published weights in the cache, after a download if it is missing.

    A file that Roboflow's package has downloaded is used if it is complete.

    Raises:
        CheckpointError: the file cannot be downloaded, or the cached one has another hash.
    """
    path = cache_folder() / row.file
    existing = roboflow_folder() / row.file
    if not path.exists() and not os.environ.get("RF_HOME") and row.md5 is not None and existing.is_file():
        if md5_of(existing) == row.md5:
            return existing
        logger.warning("Ignoring %s: its MD5 is not that of the published file", existing)
    if not path.exists():
        _get(row, path)
    elif row.md5 is not None and (actual := md5_of(path)) != row.md5:
        raise CheckpointError(
            f"{path} is not the published {row.file}: its MD5 is {actual}; expected {row.md5}. Delete it to download "
            "it again. For other weights, give the path of their file."
        )
    return path


def check_license(source: str, license: str, accepted: bool) -> None:
    """Log the license of weights; CheckpointError if it must be accepted and is not."""
    if license not in RESTRICTED:
        logger.info("%s: published under %s", source, license)
        return
    if not accepted:
        raise CheckpointError(
            f"{source}: published under {RESTRICTED[license].title} ({license}), which restricts its use. To accept "
            f"this license, set {_acceptance(license)}."
        )
    title, field = RESTRICTED[license]
    logger.warning("%s: published under %s (%s), accepted with %s", source, title, license, field.rpartition(".")[2])


def _acceptance(license: str) -> str:
    field = RESTRICTED[license].accepted_by
    return f"{field}=true (in Python: {field.rpartition('.')[2]}=True)"


def _get(row: PublishedWeights, path: Path) -> None:
    if row.url is None:
        raise CheckpointError(
            f"{row.file} cannot be downloaded automatically, because it is published under "
            f"{RESTRICTED[row.license].title} ({row.license}). If you have obtained it under that license, save it as "
            f"{path} or give its path, and set {_acceptance(row.license)}."
        )
    logger.info("Downloading %s (license %s) from %s to %s", row.file, row.license, public_url(row.url), path.parent)
    if row.md5 is None:
        logger.info("The publisher of %s states no hash, so the file is not verified", row.file)
    hash_note = f" (MD5 {row.md5})" if row.md5 else ""
    try:
        download(row.url, path, md5=row.md5)
    except DownloadError as error:
        raise CheckpointError(
            f"{row.file} is missing and could not be downloaded: {error}. Without a network, download {row.url} "
            f"elsewhere and save it as {path}{hash_note}, or give the path of a weights file."
        ) from error
