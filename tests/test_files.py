"""Atomic writing: a reader sees the old file or the new one."""

import os
import stat

import pytest

from rtdetr_tool.files import replacing, write_atomically


def test_the_file_is_replaced_whole_and_readable_by_others(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    write_atomically(path, "new ü")
    assert path.read_text(encoding="utf-8") == "new ü"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_bytes_stay_as_they_are(tmp_path):
    write_atomically(tmp_path / "x.bin", b"\x00\xff\r\n")
    assert (tmp_path / "x.bin").read_bytes() == b"\x00\xff\r\n"


def test_a_failed_rename_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    path.write_text("old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_a_block_that_raises_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "x.onnx") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_the_temporary_file_has_the_suffix_that_writers_go_by(tmp_path):
    with replacing(tmp_path / "x.onnx") as temporary:
        assert temporary.suffix == ".onnx"
        assert temporary.parent == tmp_path
