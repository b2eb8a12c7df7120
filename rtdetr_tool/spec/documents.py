"""Read untrusted spec files (YAML and JSON) as plain data, safely and within limits.

A small file can expand to a large one: a YAML alias stands for the whole content of its anchor, and aliases of aliases
grow exponentially. So size, depth and the number of values after expanding aliases are limited before anything is
built. The result is plain data; no tag creates Python objects.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from rtdetr_tool.errors import SpecError
from rtdetr_tool.files import open_regular, parse_json
from rtdetr_tool.messages import first_line

LARGEST_FILE = 1 << 20  # bytes; the longest default spec has 30 thousand, with all comments
DEEPEST = 32  # nesting of sections and lists
MOST_VALUES = 10_000  # after expanding aliases; a complete spec has 500
MOST_REFERENCES = 1_000  # ${...}
LARGEST_INTEGER = 2**63


def read_file(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file; references are not resolved."""
    text = _text(path)
    kind = "JSON" if path.suffix.lower() == ".json" else "YAML"
    try:
        if kind == "JSON":
            data = parse_json(text, object_pairs_hook=_without_duplicates)
        else:
            data = yaml.load(text, Loader=_loader())
    except json.JSONDecodeError as error:
        raise SpecError(f"not valid JSON, line {error.lineno}: {error.msg}", str(path)) from None
    except SpecError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        what = "it is nested too deeply" if isinstance(error, RecursionError) else getattr(error, "problem", None)
        raise SpecError(f"not valid {kind}{where}: {what or error}", str(path)) from None
    if data is None:
        raise SpecError("the file is empty", str(path))
    if not isinstance(data, dict):
        raise SpecError(f"expected a mapping of sections, but got {type(data).__name__}", str(path))
    problems = unusual(data)
    if problems:
        raise SpecError(problems, str(path))
    _check_references(data, text, str(path))
    return data


def _text(path: Path) -> str:
    try:
        with open_regular(path) as file:
            data = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise SpecError("the file does not exist", str(path)) from None
    except IsADirectoryError:
        raise SpecError("this is a folder, not a file", str(path)) from None
    except OSError as error:
        raise SpecError(f"the file cannot be read: {error.strerror or error}", str(path)) from None
    if len(data) > LARGEST_FILE:
        raise SpecError(f"the file is larger than the limit of {LARGEST_FILE} bytes", str(path))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(f"the file cannot be read: {error.reason} at byte {error.start}; expected UTF-8",
                        str(path)) from None  # fmt: skip


def _loader() -> type[yaml.SafeLoader]:
    """OmegaConf's loader (safe; 1e-4 is a number; a duplicate key is an error), with limits."""
    from omegaconf._utils import get_yaml_loader

    class Loader(get_yaml_loader()):  # type: ignore[misc]  # OmegaConf makes the class when it is called
        depth = values = 0

        def compose_node(self, parent: Any, index: Any) -> yaml.Node:
            self.depth, self.values = self.depth + 1, self.values + 1
            if self.depth > DEEPEST or self.values > MOST_VALUES:
                what = (
                    f"nested more than {DEEPEST} levels deep"
                    if self.depth > DEEPEST
                    else f"more than {MOST_VALUES} values"
                )
                raise yaml.composer.ComposerError(None, None, what, self.peek_event().start_mark)
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def get_single_node(self) -> yaml.Node | None:
            node = super().get_single_node()
            if node is not None:
                _count(node, {})
            return node

        def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except (ValueError, LookupError, AttributeError, TypeError, OverflowError):  # `!!bool maybe`, `!!int ''`
                kind = node.tag.rpartition(":")[2]
                shown = str(node.value)[:40]
                raise yaml.constructor.ConstructorError(
                    None, None, f"{shown!r} is not a valid {kind}", node.start_mark
                ) from None

    return Loader


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Values in a node after expanding aliases, cached in `known` by identity; ComposerError for too many."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in known:
        if not known[id(node)]:
            raise yaml.composer.ComposerError(None, None, "an anchor contains itself", node.start_mark)
        return known[id(node)]
    known[id(node)] = 0
    inner = (part for pair in node.value for part in pair) if isinstance(node, yaml.MappingNode) else node.value
    known[id(node)] = count = 1 + sum(_count(part, known) for part in inner)
    if count > MOST_VALUES:
        raise yaml.composer.ComposerError(
            None, None, f"more than {MOST_VALUES} values after expanding aliases", node.start_mark
        )
    return count


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"duplicate key '{key}'")
    return result


def unusual(data: Any) -> list[str]:
    """Problems of plain data, one line each: too many values, too deep, strings that are invalid in files or paths.

    Shared parts count each time they occur.
    """
    problems: list[str] = []
    left = MOST_VALUES

    def visit(value: Any, name: str, depth: int) -> None:
        nonlocal left
        left -= 1
        if left < 0 or depth > DEEPEST:
            return
        if isinstance(value, dict):
            for key, inner in value.items():
                place = f"{name}.{key}" if name else str(key) if not isinstance(key, int) else "an integer"
                wrong = wrong_value(key)
                if wrong:
                    problems.append(f"{name or 'the top'}: invalid key: {wrong}")
                else:
                    visit(inner, place, depth + 1)
        elif isinstance(value, (list, tuple)):
            for index, inner in enumerate(value):
                visit(inner, f"{name}[{index}]", depth + 1)
        else:
            wrong = wrong_value(value)
            if wrong:
                problems.append(f"{name}: {wrong}")
        if depth == DEEPEST and isinstance(value, (dict, list, tuple)) and value:
            problems.append(f"{name[:60]}...: nested more than {DEEPEST} deep")

    visit(data, "", 0)
    return problems if left >= 0 else [f"more than {MOST_VALUES} values after expanding references"]


def wrong_value(value: Any) -> str | None:
    """Why this scalar is invalid in any field, or None."""
    if isinstance(value, int) and abs(value) >= LARGEST_INTEGER:
        return "an integer of more than 64 bits is not supported"
    if not isinstance(value, str):
        return None
    if "\0" in value:
        return f"a text must not contain a zero byte: {value[:40]!r}"
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"a text must be encodable as UTF-8: {value[:40]!r}"
    return None


def _check_references(data: dict[str, Any], text: str, source: str) -> None:
    """Check that OmegaConf accepts the data: no malformed ${...}, no keys or values of unsupported types."""
    from omegaconf import OmegaConf

    if text.count("${") > MOST_REFERENCES:
        raise SpecError(f"more than {MOST_REFERENCES} references ${{...}}", source)
    try:
        OmegaConf.create(data)
    except Exception as error:  # OmegaConf's errors have no common public base
        raise SpecError(f"cannot be read: {first_line(error)}", source) from None
