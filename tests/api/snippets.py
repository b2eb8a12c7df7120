"""Cut the Python snippets out of pages of documentation that were saved as plain text."""

from __future__ import annotations

import ast
import doctest
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# What a line of a snippet can be; a line of prose that happens to be Python is a name, a constant or a comparison.
_STATEMENTS = (ast.Import, ast.ImportFrom, ast.Assign)
_LONGEST = 40  # lines of a statement


class Snippet(NamedTuple):
    """A snippet of a page, with its imports changed to `rtdetr_tool.rfdetr`."""

    page: str
    line: int  # of the file, counted from 1
    code: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def snippets(path: Path) -> list[Snippet]:
    """All snippets of a page in its order: blocks of statements, and examples after `>>>`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [*_blocks(lines), *_examples(lines)]
    return [Snippet(path.name[:3], line + 1, _imports_changed(code)) for line, code in sorted(found)]


def _blocks(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Runs of statements at the left margin, with the comments between them."""
    index = 0
    while index < len(lines):
        start = index
        while (end := _statement_end(lines, index)) or (index > start and lines[index].startswith("#")):
            index = end or index + 1
            if index >= len(lines):
                break
        if index > start:
            yield start, "\n".join(lines[start:index])
        index = max(index, start + 1)


def _statement_end(lines: list[str], start: int) -> int:
    """The index after the statement that begins with a line; 0 if none does."""
    if not re.match(r"[A-Za-z_]", lines[start]):
        return 0
    for end in range(start + 1, min(start + _LONGEST, len(lines)) + 1):
        try:
            body = ast.parse("\n".join(lines[start:end])).body
        except SyntaxError:
            continue
        return end if all(_is_code(node) for node in body) else 0
    return 0


def _is_code(node: ast.stmt) -> bool:
    return isinstance(node, _STATEMENTS) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))


def _examples(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Runs of interactive examples, with the expected output of each as an assertion."""
    start = None
    for index, line in enumerate([*lines, ""]):
        inside = line.lstrip().startswith((">>>", "...")) or (start is not None and _is_output(lines, index))
        if inside and start is None:
            start = index
        elif not inside and start is not None:
            yield start, _as_code(lines[start:index])
            start = None


def _is_output(lines: list[str], index: int) -> bool:
    """Whether a line is the value that the example before it prints: one word."""
    return index < len(lines) and bool(re.fullmatch(r"\s*[\w.]+", lines[index]))


def _as_code(lines: list[str]) -> str:
    indent = len(lines[0]) - len(lines[0].lstrip())
    parts = []
    for example in doctest.DocTestParser().get_examples("\n".join(line[indent:] for line in lines) + "\n"):
        code = example.source.rstrip()
        parts.append(f"assert repr({code}) == {example.want.strip()!r}" if example.want else code)
    return "\n".join(parts)


def _imports_changed(code: str) -> str:
    return re.sub(r"from rfdetr[.\w]* import", "from rtdetr_tool.rfdetr import", code)
