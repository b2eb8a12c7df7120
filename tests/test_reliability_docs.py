"""Every guarantee in docs/reliability.md names tests that exist."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
SECTIONS = ("Fault tolerance", "Input validation", "Security")


def rows(section: str) -> list[tuple[str, str]]:
    """(guarantee, tests) of each row of a section's first table."""
    text = PAGE.partition(f"## {section}\n")[2].partition("\n##")[0]
    table = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:3]) for line in table]


@cache
def defined() -> frozenset[str]:
    """Names of all test functions and classes."""
    files = (ROOT / "tests").rglob("test_*.py")
    return frozenset(
        name for file in files for name in re.findall(r"^\s*(?:def|class) ([Tt]est\w+)", file.read_text("utf-8"), re.M)
    )


def named(cell: str) -> list[str]:
    return re.findall(r"tests/[\w/]+\.py|\b[Tt]est_?\w+\b", cell)


def exists(name: str) -> bool:
    return (ROOT / name).is_file() if name.startswith("tests/") else name in defined()


def test_missing_names_are_detected():
    assert named("`tests/a/test_b.py`: `test_c`, make x") == ["tests/a/test_b.py", "test_c"]
    assert exists("tests/test_cli.py") and exists("test_missing_names_are_detected")
    assert not exists("tests/test_none.py") and not exists("test_of_nothing_at_all")


def test_the_page_has_all_sections():
    assert re.findall(r"^## (.*)", PAGE, re.M) == list(SECTIONS)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_guarantee_names_existing_tests(section):
    assert rows(section)
    for guarantee, tests in rows(section):
        assert named(tests), f"no test for: {guarantee}"
        assert [name for name in named(tests) if not exists(name)] == [], guarantee
