"""Weights by name or URL: the download cache and the check of their licenses."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from rtdetr_tool.catalog import INHERITED_LICENSES, PUBLISHED_WEIGHTS, RESTRICTED, PublishedWeights
from rtdetr_tool.checkpoints.download import download, is_url, md5_of, public_url
from rtdetr_tool.checkpoints.hub import hub_id, local_path
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


def weights_path(name: str | os.PathLike[str], given: Mapping[str, Any] | None = None) -> Path:
    """The path `name` itself; for a URL, a published name or an id of the Hub the path in the cache.

    What is not in the cache is downloaded.

    Args:
        given: fields of the spec's `model` section, with which the user may accept a license.

    Raises:
        CheckpointError: the file cannot be downloaded, or the cached one has another hash; a license is not accepted.
    """
    if is_url(os.fspath(name)) and hub_id(name) is None:
        return download_url(os.fspath(name))
    row = published(name)
    if row is None or Path(name).exists():
        return local_path(name)
    return download_published(row, is_accepted(row.license, given or {}))


def download_url(url: str) -> Path:
    """The path of the file at a URL in the cache, after a download if it is missing. It is not verified."""
    file = PurePosixPath(urlsplit(url).path).name or "weights"
    path = cache_folder() / "urls" / hashlib.sha256(url.encode()).hexdigest()[:16] / file
    if not path.exists():
        logger.info("Downloading %s to %s", public_url(url), path)
        try:
            download(url, path, md5=None)
        except DownloadError as error:
            raise CheckpointError(f"{error}. Download it elsewhere, and give the path of the file") from error
    return path


def download_published(row: PublishedWeights, accepted: bool = False) -> Path:
    """The path of published weights in the cache, after a download if it is missing.

    A file that Roboflow's package has downloaded is used if it is complete.

    Args:
        accepted: the user accepts a license that must be accepted.

    Raises:
        CheckpointError: the file cannot be downloaded, or the cached one has another hash; the license is not accepted.
    """
    path = cache_folder() / row.file
    existing = roboflow_folder() / row.file
    if not path.exists() and not os.environ.get("RF_HOME") and row.md5 is not None and existing.is_file():
        if md5_of(existing) == row.md5:
            return existing
        logger.warning("Ignoring %s: its MD5 is not that of the published file", existing)
    if not path.exists():
        if row.license in RESTRICTED:
            check_license(row.file, row.license, accepted)
        _get(row, path)
    elif row.md5 is not None and (actual := md5_of(path)) != row.md5:
        raise CheckpointError(
            f"{path} is not the published {row.file}: its MD5 is {actual}; expected {row.md5}. Delete it to download "
            "it again. For other weights, give the path of their file."
        )
    return path


def log_inherited_license(name: str, license: str | None) -> None:
    """Log the license of a backbone's weights if it also applies to what is trained from them."""
    if license in INHERITED_LICENSES:
        logger.info(
            "Weights of %s are published under the %s, which also applies to weights trained from them "
            "(docs/backbones.md)", name, license,
        )  # fmt: skip


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


def is_accepted(license: str, given: Mapping[str, Any]) -> bool:
    """Whether these fields of the spec's `model` section accept a license, if it must be accepted."""
    if license not in RESTRICTED:
        return True
    *sections, field = RESTRICTED[license].accepted_by.removeprefix("model.").split(".")
    for section in sections:
        given = given.get(section) or {}
    return bool(given.get(field))


def _acceptance(license: str) -> str:
    field = RESTRICTED[license].accepted_by
    return f"{field}=true (in Python: {field.rpartition('.')[2]}=True)"


def _get(row: PublishedWeights, path: Path) -> None:
    logger.info("Downloading %s (license %s) from %s to %s", row.file, row.license, public_url(row.url), path.parent)
    if row.md5 is None:
        logger.info("The publisher of %s provides no hash, so the file is not verified", row.file)
    hash_note = f" (MD5 {row.md5})" if row.md5 else ""
    try:
        download(row.url, path, md5=row.md5)
    except DownloadError as error:
        raise CheckpointError(
            f"{row.file} is missing and could not be downloaded: {error}. Without a network, download {row.url} "
            f"elsewhere and save it as {path}{hash_note}, or give the path of a weights file."
        ) from error
