"""Missing MNN files, and what of MNN the package imports; without MNN."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import rtdetr_tool.formats.mnn
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.formats.mnn.file import read


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="There is no MNN file"):
        read(tmp_path / "no.mnn")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read(tmp_path)


def test_the_tools_that_send_statistics_are_never_imported():
    """`MNN.tools` installs a package with pip when it is imported, and sends usage statistics."""
    for path in Path(rtdetr_tool.formats.mnn.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        named = [text for text in strings if isinstance(text, str) and "import" in text and "MNN.tools" in text]
        imports = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not any("MNN.tools" in line for line in imports)
        assert all(text == ast.get_docstring(tree, clean=False) for text in named)
