"""Share a detector: a directory with a model card, or a repository on the Hugging Face Hub."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from rtdetr_tool.formats.opening import OpenedDetector
from rtdetr_tool.workflows.convert import RTDETR
from rtdetr_tool.workflows.share import check_repo_id, upload, write_directory


def save(
    opened: OpenedDetector, folder: str | os.PathLike[str], license: str | None, layout: str | None, over: bool
) -> Path:
    """Write the directory; see `Detector.save_pretrained`."""
    return write_directory(opened, Path(folder), license=license, layout=layout or RTDETR, overwrite=over)


def push(
    opened: OpenedDetector,
    repo_id: str,
    *,
    license: str | None = None,
    layout: str | None = None,
    private: bool = False,
    message: str = "",
    token: str | None = None,
) -> str:
    """Upload the directory; see `Detector.push_to_hub`."""
    check_repo_id(repo_id)
    with tempfile.TemporaryDirectory(prefix="rtdetr-push-") as folder:
        write_directory(opened, Path(folder), repo_id=repo_id, license=license, layout=layout or RTDETR)
        return upload(Path(folder), repo_id, private=private, message=message, token=token)
