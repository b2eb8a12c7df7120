"""Names of the checkpoint files of a run, reading and writing them, and choosing the one to resume from.

::

    model_epoch_007.pth            every checkpoint_interval epochs (counted from 0) and after the last epoch
    model_epoch_007_step_00320.pth with checkpoint_interval_unit: step, and when a run was asked to end or failed
    model_epoch_007-EMA.pth        its twin when EMA is on: `state_dict` holds the averaged weights
    rtdetr_model_best.pth          the best validation mAP so far; not a link, so the others may be deleted
    rtdetr_model_best_ema.pth      with train.ema.validate_both: the best averaged weights
    rtdetr_model_best_regular.pth  and the best trained weights; rtdetr_model_best.pth is the better of the two
    model_best_007.pth             with train.checkpointer.enable_topk: the best by a metric; the name is in the spec
    rtdetr_model_latest.pth        link to the newest checkpoint (the twin if there is one)

The files are written in this order, the link last. A run that is killed in between resumes from the previous
checkpoint and writes the same files again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pytorch_lightning.plugins.io import CheckpointIO

from rtdetr_tool.checkpoints.io import load_checkpoint, save_checkpoint
from rtdetr_tool.checkpoints.metadata import KEY
from rtdetr_tool.errors import CheckpointError, WriteError
from rtdetr_tool.files import move_into_place, replacing, sync_directory
from rtdetr_tool.status import current_status
from rtdetr_tool.training.roboflow_resume import is_convertible, training_state_from_file

logger = logging.getLogger(__name__)

LATEST, BEST = "rtdetr_model_latest.pth", "rtdetr_model_best.pth"
BEST_BY_KIND = {"ema": "rtdetr_model_best_ema.pth", "raw": "rtdetr_model_best_regular.pth"}
_NUMBERED = re.compile(r"model_epoch_(\d+)(?:_step_(\d+))?(-EMA)?\.pth")
# The temporary names that `files.replacing` and `_temporary_sibling` use until a file is complete.
_UNFINISHED = re.compile(
    r"\.(model_epoch_\d+|rtdetr_model_(latest|best))\S*\.(pth|tmp)|\.(status|experiment)\.\w+\.(json|yaml)"
)


class SafeCheckpointIO(CheckpointIO):
    """Let Lightning read and write through `checkpoints.io`: atomically, and only weights and plain data."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        try:
            try:
                save_checkpoint(checkpoint, path)
            except FileNotFoundError:  # the folder was deleted, perhaps in the middle of the save
                current_status().confirm_folder()
                save_checkpoint(checkpoint, path)
        except (OSError, RuntimeError) as error:
            reason = error if isinstance(error, OSError) else error.__context__  # torch wraps errors of the file
            if not isinstance(reason, OSError):
                raise
            raise WriteError(
                f"The checkpoint {path} could not be written: {reason.strerror}. Earlier checkpoints are intact. "
                "When the cause is fixed, run the same command again to resume from them."
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        payload = load_checkpoint(path)
        if is_convertible(payload):
            return training_state_from_file(path)
        if KEY not in payload or "loops" not in payload:
            raise CheckpointError(
                f"{path} has weights but no training state of rtdetr_tool, so a run cannot resume from it. Set "
                "train.pretrained_model_path to it to start from its weights."
            )
        return payload

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def find_resume_path(folder: str | os.PathLike[str], explicit: str | None = None) -> Path | None:
    """The explicit path, else the target of the latest link in `folder`, else its newest checkpoint if the link is
    dangling. Without a link, a run starts from scratch: that is how users of TAO ask for it.
    """
    if explicit:
        return Path(explicit)
    latest = Path(folder) / LATEST
    if latest.exists():
        return latest.resolve() if latest.is_symlink() else latest
    numbered = [file for file in Path(folder).glob("model_epoch_*.pth") if _NUMBERED.fullmatch(file.name)]
    newest = max(numbered, key=_training_order, default=None)
    if newest is None:
        return None
    if latest.is_symlink():
        logger.warning("%s is a dangling link; using the newest checkpoint, %s", latest, newest.name)
        return newest
    logger.warning(
        "%s was removed, so the run starts from scratch and replaces the other checkpoints in its folder. To resume "
        "instead, set train.resume_training_checkpoint_path, for example to %s",
        latest,
        newest,
    )
    return None


def _training_order(file: Path) -> tuple[int, float, bool]:
    """Sort key of numbered checkpoints: by epoch, where those of single steps come before the one of the epoch."""
    match = _NUMBERED.fullmatch(file.name)
    assert match is not None
    epoch, step, twin = match.groups()
    return int(epoch), int(step) if step else float("inf"), bool(twin)


def remove_unfinished(folder: str | os.PathLike[str]) -> None:
    """Delete temporary files that a killed run has left. No other process may be writing to the folder."""
    for file in Path(folder).glob(".*"):
        if _UNFINISHED.fullmatch(file.name):
            file.unlink(missing_ok=True)


def point_link(link: Path, target: Path) -> None:
    """Atomically make `link` a relative symbolic link to `target`, or a copy if the file system has no links."""
    _replace(link, target, lambda temporary: os.symlink(os.path.relpath(target, link.parent), temporary))


def share_file(source: Path, path: Path) -> None:
    """Atomically make `path` a hard link to `source`, or a copy if that is not possible."""
    _replace(path, source, lambda temporary: os.link(source, temporary))


def _replace(path: Path, source: Path, create_link: Callable[[Path], None]) -> None:
    """Replace `path` by the link that `create_link` creates, or by a copy of `source`."""
    with _temporary_sibling(path) as temporary:
        try:
            create_link(temporary)
        except OSError:
            with replacing(path) as copy:
                shutil.copyfile(source, copy)
        else:
            move_into_place(temporary, path)
            sync_directory(path.parent)


@contextlib.contextmanager
def _temporary_sibling(path: Path) -> Iterator[Path]:
    """An unused name in the same folder, removed afterwards. (Renaming a hard link onto its own file keeps both.)"""
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
