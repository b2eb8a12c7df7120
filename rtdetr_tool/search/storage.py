"""Where the trials of a search are stored: a database by URL, or a file that machines share."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtdetr_tool.errors import UserError
from rtdetr_tool.messages import first_line
from rtdetr_tool.redaction import mask_secrets
from rtdetr_tool.spec import AutomlSpec

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

logger = logging.getLogger(__name__)

DATABASE, JOURNAL = "study.db", "study.journal"
_JOURNAL_SCHEME = "journal://"
# Types of file systems on which SQLite's locks are not reliable.
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "fuse.glusterfs", "afs", "beegfs", "lustre")


def storage_url(section: AutomlSpec, folder: Path) -> str:
    """The URL of the storage; UserError if `folder` has a search that the jobs of a cluster cannot share."""
    from sqlalchemy import URL

    if section.storage:
        return section.storage
    database, journal = folder.resolve() / DATABASE, folder.resolve() / JOURNAL
    if section.slurm.jobs is None and not journal.exists():
        return URL.create("sqlite", database=str(database)).render_as_string(hide_password=False)
    if database.exists():
        raise UserError(
            f"automl.slurm.jobs: the search in {folder} is stored in {DATABASE}, which jobs do not use. Continue it "
            "with automl.slurm.jobs=null, or use another results folder with -r or automl.results_dir"
        )
    return f"{_JOURNAL_SCHEME}{journal}"


def open_storage(url: str) -> BaseStorage:
    """Optuna's storage for a URL. Raises what the driver raises."""
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if url.startswith(_JOURNAL_SCHEME):
        path = Path(url.removeprefix(_JOURNAL_SCHEME))
        if not path.is_absolute():
            raise ValueError(f"{path} is not an absolute path")
        return JournalStorage(JournalFileBackend(str(path)))  # its lock is a link, which NFS creates atomically
    if url.startswith("sqlite"):
        _warn_about_network(url)
    return RDBStorage(_with_driver(url), engine_kwargs=_engine_options(url))


def storage_failure(error: BaseException) -> str:
    """The message of the driver, which is at the root of the causes."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    return mask_secrets(first_line(root))


def file_system_type(path: Path, mounts: str) -> str:
    """The type of the file system with `path`, from the content of /proc/mounts; empty if it is unknown."""
    inside = str(path.resolve())
    best = ("", "")
    for line in mounts.splitlines():
        _, point, kind, *_ = [*line.split(" "), "", "", ""]
        point = point.replace("\\040", " ")
        is_parent = point == "/" or inside == point or inside.startswith(f"{point}/")
        if is_parent and len(point) >= len(best[0]):
            best = (point, kind)
    return best[1]


def _warn_about_network(url: str) -> None:
    """Warn about an SQLite file that several machines may use."""
    from sqlalchemy import make_url

    database = make_url(url).database
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return
    kind = file_system_type(Path(database), mounts) if database else ""
    if database and kind in _NETWORK:
        logger.warning(
            "%s is on a network file system (%s), where SQLite's locks are not reliable; for several processes, use "
            "automl.storage=%s%s or PostgreSQL",
            database, kind, _JOURNAL_SCHEME, os.path.join(os.path.dirname(os.path.abspath(database)), JOURNAL),
        )  # fmt: skip


def _with_driver(url: str) -> str:
    """PostgreSQL's URL with psycopg as its driver unless it names one."""
    scheme, separator, rest = url.partition("://")
    return f"postgresql+psycopg://{rest}" if separator and scheme in ("postgresql", "postgres") else url


def _engine_options(url: str) -> dict[str, Any]:
    if url.startswith("sqlite"):
        return {}
    timeout = {"connect_timeout": 20} if url.startswith("postgres") else {}
    return {"pool_pre_ping": True, "connect_args": timeout}
