"""The rows of docs/differences.md are numbered, have a known status, and name tests and fields that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from rtdetr_tool.spec.schema import field_names

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "differences.md").read_text(encoding="utf-8")
STATUSES = {"equal", "on purpose", "not available"}
SECTIONS = "model|dataset|train|evaluate|inference|export|gen_trt_engine|distill|quantize|wandb|mlflow"


def rows(page: str = PAGE) -> list[list[str]]:
    """The cells of each numbered row: number, area, original, here, status, evidence."""
    lines = [line for line in page.splitlines() if re.match(r"\| \d+ \|", line)]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


@cache
def functions_in(file: str) -> frozenset[str]:
    """Names of the test functions of a file, also of those in classes."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def missing(evidence: str) -> Iterator[str]:
    """The named tests that do not exist."""
    for name in re.findall(r"`(tests/[^`]*)`", evidence):
        file, _, test = name.partition("::")
        if not (ROOT / file).is_file() or (test and test not in functions_in(file)):
            yield name


def test_rows_are_numbered_without_gaps_and_complete():
    assert [int(row[0]) for row in rows()] == list(range(1, len(rows()) + 1)) and len(rows()) > 50
    for row in rows():
        assert len(row) == 6 and all(row), row


def test_each_status_is_a_known_one():
    assert {row[4] for row in rows()} == STATUSES


def test_missing_tests_are_detected():
    names = ["tests/test_none.py", "tests/test_cli.py::test_none"]
    assert list(missing(", ".join(f"`{name}`" for name in [*names, "tests/test_cli.py"]))) == names


def test_every_row_names_an_existing_test_or_a_command():
    for row in rows():
        assert re.search("`(tests/|rtdetr )", row[5]), row
        assert list(missing(row[5])) == [], row


def test_every_named_field_exists():
    named = set(re.findall(rf"`((?:{SECTIONS})\.[a-z_.]+)", PAGE))
    assert named
    known = set(field_names())
    assert {name for name in named if name not in known and not any(k.startswith(f"{name}.") for k in known)} == set()
