"""Phrases that docs/style.md replaces do not come back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = (
    *(path for folder in ("rtdetr_tool", "scripts", "tests") for path in (ROOT / folder).rglob("*.py")),
    *(path for path in (ROOT / "docs").rglob("*.md") if path.name != "style.md"),
    *(path for folder in (".github", ".ci", "specs") for path in (ROOT / folder).rglob("*") if path.is_file()),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "Makefile")),
)

# Regular expressions, any case. `pictures` remains as a key of files that we write (export.json, precision.json,
# calibration caches).
PHRASES = (
    r"is not allowed; allowed",
    r"a value is missing",
    r"without a word",
    r"says? of itself",
    r"(?<!\")(?<!calibration\.)\bpictures?\b(?!\")(?!: int)",
    r"\bgo(es)? on from\b",
    r"\banew\b",
    r"\bmended\b",
    r"\bleft out\b",
    r"\b(lie|lies) in\b",
    r"\bstands? in\b",
    r"\bstands? beside\b",
    r"\bheld against\b",
    r"\bdata sets?\b",
    r"leads nowhere",
    r"(?<![=\"])\bnobody\b",
    r"given out",
    r"which this tool does not have",
    r"works? off",
    r"\bas it stands\b",
    r"\bby heart\b",
)


@pytest.mark.parametrize("phrase", PHRASES)
def test_a_replaced_phrase_does_not_come_back(phrase):
    pattern = re.compile(phrase, re.IGNORECASE)
    places = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in FILES
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for _ in pattern.findall(line)
    ]
    assert not places
