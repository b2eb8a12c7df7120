"""The latest and the best checkpoint are links, or copies if the file system has none."""

from __future__ import annotations

import errno
import os

import pytest

from rtdetr_tool.training.checkpointing import BEST, LATEST, point_link, share_file


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model_epoch_000.pth").write_bytes(b"new")
    for name in (BEST, LATEST):
        (tmp_path / name).write_bytes(b"old")
    return tmp_path


def create_both(folder):
    point_link(folder / LATEST, folder / "model_epoch_000.pth")
    share_file(folder / "model_epoch_000.pth", folder / BEST)
    assert sorted(os.listdir(folder)) == sorted(["model_epoch_000.pth", BEST, LATEST])


def test_links_take_no_space(folder):
    for _ in range(2):  # also onto themselves
        create_both(folder)
    assert os.readlink(folder / LATEST) == "model_epoch_000.pth"
    assert (folder / BEST).samefile(folder / "model_epoch_000.pth") and not (folder / BEST).is_symlink()


def test_without_links_flushed_copies_are_written(folder, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    flushed, flush = set(), os.fsync
    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "fsync", lambda file: (flushed.add(os.fstat(file).st_ino), flush(file)))
    create_both(folder)
    for name in (BEST, LATEST):
        assert (folder / name).read_bytes() == b"new" and not (folder / name).is_symlink()
        assert (folder / name).stat().st_ino in flushed
