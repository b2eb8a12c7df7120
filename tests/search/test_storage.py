"""Storage of trials: the file system of a path, and a file that several processes write."""

from __future__ import annotations

import logging
import multiprocessing
from pathlib import Path

import pytest

pytest.importorskip("optuna")

from rtdetr_tool.errors import UserError
from rtdetr_tool.search import storage
from rtdetr_tool.search.study import open_study
from rtdetr_tool.spec import spec_from_dict
from rtdetr_tool.spec.search_space import search_space

MOUNTS = """/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sdb1 /home/local ext4 rw 0 0
server:/a /my\\040data nfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/tmp/study.db", "ext4"), ("/home/me/study.db", "nfs4"), ("/home/local/study.db", "ext4"),
        ("/homes/study.db", "ext4"), ("/my data/study.db", "nfs"),
    ],
)  # fmt: skip
def test_the_innermost_mount_decides_the_file_system(path, kind):
    assert storage.file_system_type(Path(path), MOUNTS) == kind


def test_sqlite_on_a_network_file_system_is_a_warning_with_the_alternative(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(storage, "file_system_type", lambda path, mounts: "nfs4")
    with caplog.at_level(logging.WARNING):
        storage.open_storage(f"sqlite:///{tmp_path}/study.db")
    assert "network file system (nfs4)" in caplog.text and f"automl.storage=journal://{tmp_path}" in caplog.text


def searched(tmp_path: Path, **section) -> tuple:
    spec = spec_from_dict({"automl": {"fields": ["train.optim.lr"], **section}})
    return spec.automl, tmp_path, spec, search_space(spec).parameters


def _ask(arguments: tuple, count: int) -> None:
    study = open_study(*arguments)
    for _ in range(count):
        study.tell(study.ask(), 0.5)


def test_two_processes_share_a_journal(tmp_path):
    arguments = searched(tmp_path, storage=f"journal://{tmp_path}/shared.journal")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_ask, args=(arguments, 10)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    numbers = [trial.number for trial in open_study(*arguments).get_trials()]
    assert numbers == list(range(20))


@pytest.mark.parametrize("name", ["relative.journal", "/nowhere/at/all/study.journal"])
def test_a_journal_that_cannot_be_used_is_one_message(tmp_path, name):
    with pytest.raises(UserError, match=r"automl.storage: journal://.* cannot be used"):
        open_study(*searched(tmp_path, storage=f"journal://{name}"))


def test_a_search_of_jobs_continues_on_one_machine(tmp_path):
    jobs, *rest = searched(tmp_path, slurm={"jobs": 1})
    open_study(jobs, *rest).enqueue_trial({"train.optim.lr": 1e-4})
    local, *_ = searched(tmp_path)
    assert len(open_study(local, *rest).get_trials()) == 1
