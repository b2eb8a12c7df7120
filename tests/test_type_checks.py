"""mypy is strict for every module, and each exception to it names its error and its reason."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).parents[1]
MYPY = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
IGNORE = re.compile(r"# type: ignore(.*)")
EXPLAINED = re.compile(r"\[[a-z-]+(, [a-z-]+)*\]  # \S")


def unexplained(text: str) -> list[str]:
    """The lines with a `type: ignore` without an error code or a reason."""
    return [
        line.strip()
        for line in text.splitlines()
        if (match := IGNORE.search(line)) is not None and not EXPLAINED.match(match[1])
    ]


def test_every_module_is_checked_strictly():
    assert MYPY["strict"] is True and MYPY["files"] == ["rtdetr_tool"]
    assert "exclude" not in MYPY
    loosened = {name for row in MYPY["overrides"] for name in row if name != "module"}
    assert loosened == {"implicit_reexport", "ignore_missing_imports"}


def test_only_triton_kernels_are_excused_in_a_module_itself():
    files = [path for path in (ROOT / "rtdetr_tool").rglob("*.py") if "# mypy:" in path.read_text(encoding="utf-8")]
    assert [path.name for path in files] == ["deformable_kernels.py"]


def test_only_named_libraries_may_lack_types():
    rows = [row for row in (MYPY, *MYPY["overrides"]) if row.get("ignore_missing_imports")]
    names = [name for row in rows for name in row.get("module", ["*"])]
    assert names and not any(name.startswith(("*", "rtdetr_tool")) for name in names)


# What may be missing: attributes of modules that depend on the platform or version, and methods of Lightning's loggers.
HASATTR = {"errno", "onnxruntime", "os", "signal", "target"}


def test_our_own_types_are_not_asked_for_attributes():
    """They have Protocols."""
    calls = [
        (path, node)
        for path in (ROOT / "rtdetr_tool").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "hasattr"
    ]
    assert calls
    assert [f"{path.name}:{node.lineno}" for path, node in calls if ast.unparse(node.args[0]) not in HASATTR] == []


@pytest.mark.parametrize("folder", ["rtdetr_tool", "scripts", "tests"])
def test_each_ignored_error_is_explained(folder):
    files = [path for path in (ROOT / folder).rglob("*.py") if path != Path(__file__)]
    result = {str(path.relative_to(ROOT)): unexplained(path.read_text(encoding="utf-8")) for path in files}
    assert {path: lines for path, lines in result.items() if lines} == {}


@pytest.mark.parametrize("comment", ["type: ignore", "type: ignore[misc]", "type: ignore[]  # the reason"])
def test_a_comment_without_code_or_reason_is_recognized(comment):
    assert unexplained(f"x = 1  # {comment}") == [f"x = 1  # {comment}"]
    assert unexplained("x = 1  # type: ignore[misc, no-any-return]  # the reason") == []
