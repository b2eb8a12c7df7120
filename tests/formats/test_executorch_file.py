"""Bad ExecuTorch programs, and ExecuTorch itself where it does not work; without ExecuTorch."""

from __future__ import annotations

import struct

import pytest

from rtdetr_tool.errors import CheckpointError, UserError
from rtdetr_tool.formats.executorch.file import read
from rtdetr_tool.formats.executorch.library import import_quietly


def program(size: int) -> bytes:
    """The start of a program that states `size` bytes: 100 of the program, then a segment."""
    return struct.pack("<I4s4sIQQQ", 60, b"ET12", b"eh00", 32, 100, 128, size - 128)


def test_a_missing_program(tmp_path):
    with pytest.raises(CheckpointError, match="There is no ExecuTorch program"):
        read(tmp_path / "no.pte")


@pytest.mark.parametrize("content", [b"", b"<html></html>", bytes(4096)])
def test_another_format(content, tmp_path):
    (tmp_path / "model.pte").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"is not an ExecuTorch program \({len(content)} bytes"):
        read(tmp_path / "model.pte")


def test_a_truncated_program_is_named_with_both_sizes(tmp_path):
    (tmp_path / "model.pte").write_bytes(program(5000).ljust(4999, b"\0"))
    with pytest.raises(CheckpointError, match="is truncated: it has 4999 bytes; expected 5000"):
        read(tmp_path / "model.pte")


def test_a_library_for_another_pytorch_ends_in_a_message_with_the_versions(tmp_path, monkeypatch):
    (tmp_path / "built_for_another_torch.py").write_text("raise ImportError('_C.so: undefined symbol: c10_foo')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"cannot be loaded with torch \d.*undefined symbol: c10_foo.*was tested with"):
        import_quietly("built_for_another_torch")
