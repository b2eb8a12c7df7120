"""Two runs never share a results folder; a run that was killed does not block the next one."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rtdetr_tool.commands import run_lock
from rtdetr_tool.commands.run_lock import NAME, RunLock
from rtdetr_tool.errors import UserError

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time, os
from pathlib import Path
from rtdetr_tool.commands.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]), "train")
worker = os.fork()  # like a data worker, which survives its parent for a moment
if worker == 0:
    time.sleep(300)
print(worker, flush=True)
time.sleep(300)
"""


@pytest.fixture
def other_run(tmp_path):
    """Another process that has locked the folder, and the process id of its worker."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    yield process
    process.kill()
    os.kill(worker, signal.SIGKILL)  # first, because it has the other end of the pipe
    process.communicate()


def test_a_second_run_is_refused_with_one_message_and_writes_nothing(project, capsys):
    folder = project.folder / "results" / "train"
    folder.mkdir(parents=True)
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    try:
        assert project.run("train") == 2
        assert os.listdir(folder) == [NAME]
    finally:
        process.kill()
        os.kill(worker, signal.SIGKILL)
        process.communicate()
    shown = capsys.readouterr().err
    assert f"Error: the results folder {folder} is in use by `rtdetr train` (process {process.pid} on " in shown
    assert "-r or results_dir=" in shown and "Traceback" not in shown


def test_a_killed_run_does_not_block_the_next_even_if_its_worker_lives(other_run, tmp_path):
    other_run.kill()
    other_run.wait()
    lock = RunLock(tmp_path, "train")
    assert f"process {other_run.pid} on {socket.gethostname()}" in lock.stale
    lock.release()
    assert not (tmp_path / NAME).exists()


def test_the_run_after_a_killed_one_closes_its_status_file(project, capsys):
    folder = project.folder / "results" / "train"
    folder.mkdir(parents=True)
    (folder / NAME).write_text(json.dumps({"command": "train", "host": "gpu7", "pid": 12, "since": "2026-01-02 03:04"}))
    (folder / "status.json").write_text('{"status": "STARTED", "message": "Starting"}\n')
    assert project.run("train") == 0
    states = [(line["status"], line["message"]) for line in project.status("train")]
    assert states[1] == (
        "FAILURE", "Killed: `rtdetr train` (process 12 on gpu7, since 2026-01-02 03:04) did not exit cleanly.",
    )  # fmt: skip
    assert [state for state, _ in states][2] == "STARTED" and states[-1][0] == "SUCCESS"


def test_a_released_lock_leaves_no_file_and_is_not_stale(tmp_path):
    RunLock(tmp_path, "train").release()
    second = RunLock(tmp_path, "distill")
    assert second.stale is None
    second.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"[" * 4096, b"[]", b"\xff", b"{", b'{"pid": 1e999, "host": "\x1b[2J"}'])
def test_any_content_of_a_lock_file_is_accepted_by_the_next_run(content, tmp_path):
    (tmp_path / NAME).write_bytes(content)
    RunLock(tmp_path, "train").release()
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_lock_was_deleted_keeps_the_lock_of_the_next_run(tmp_path):
    first = RunLock(tmp_path, "train")
    (tmp_path / NAME).unlink()
    second = RunLock(tmp_path, "train")
    first.release()
    assert (tmp_path / NAME).exists()
    second.release()
    assert list(tmp_path.iterdir()) == []


class TestWithoutLocksOfTheFileSystem:
    @pytest.fixture(autouse=True)
    def no_locks(self, monkeypatch):
        def refuse(*_):
            raise OSError(errno.EOPNOTSUPP, "not supported")

        monkeypatch.setattr(run_lock.fcntl, "lockf", refuse)

    def test_a_running_process_is_respected_and_a_dead_one_is_not(self, other_run, tmp_path):
        with pytest.raises(UserError, match=f"process {other_run.pid} on .*If that run has ended, delete"):
            RunLock(tmp_path, "train")
        other_run.kill()
        other_run.wait()
        lock = RunLock(tmp_path, "train")
        assert str(other_run.pid) in lock.stale
        lock.release()

    def test_another_process_with_the_same_id_does_not_count_as_the_run(self, tmp_path):
        mine = {"command": "train", "host": socket.gethostname(), "pid": os.getpid(), "process_started": "1"}
        (tmp_path / NAME).write_text(json.dumps(mine))
        lock = RunLock(tmp_path, "train")
        assert str(os.getpid()) in lock.stale
        lock.release()

    def test_an_invalid_process_id_belongs_to_no_run(self, tmp_path):
        (tmp_path / NAME).write_text(json.dumps({"host": socket.gethostname(), "pid": float("inf")}))
        RunLock(tmp_path, "train").release()

    def test_a_run_on_another_machine_is_respected(self, tmp_path):
        (tmp_path / NAME).write_text(json.dumps({"command": "train", "host": "elsewhere", "pid": 1}))
        with pytest.raises(UserError, match="process 1 on elsewhere"):
            RunLock(tmp_path, "train")
