"""docs/spec.md: every field with type, default, range, origin and help."""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

from rtdetr_tool.spec.convert import bounds_text, options_text
from rtdetr_tool.spec.experiment import ExperimentSpec
from rtdetr_tool.spec.fields import default_of
from rtdetr_tool.spec.queries import reasons
from rtdetr_tool.spec.schema import hints_of, item_type, section_type
from rtdetr_tool.spec.tables import (
    DIFFERENCES,
    DIFFERENCES_OF_VERSION,
    DOCUMENTATION_DIFFERENCES,
    FIELD_ALIASES,
    TAO_VERSIONS,
    VALUE_ALIASES,
)


def reference_page() -> str:
    """`docs/spec.md`: every field with type, default, range, origin and help."""
    lines = [
        "# Spec reference",
        "",
        "Generated from `rtdetr_tool/spec` by `python scripts/generate_spec_reference.py`; do not edit.",
        "",
        f"Origin: blank = TAO's schema (nvidia-tao-core {' or '.join(TAO_VERSIONS)}); *seed* = TAO's documentation "
        "only; *ours* = added here. AutoML: TAO's `automl_enabled`. `???` = required by the commands that use it.",
    ]
    _reference_section(ExperimentSpec, "", "Top level", lines)
    lines += [
        "",
        "## Accepted without effect",
        "",
        "Setting one of them logs the reason.",
        "",
        "| field | reason |",
        "|---|---|",
    ]
    lines += [f"| `{name}` | {reason} |" for name, reason in unused_fields().items()]
    for title, table in (
        ("Differences from nvidia-tao-core", DIFFERENCES),
        *((f"Differences from version {version} only", table) for version, table in DIFFERENCES_OF_VERSION.items()),
        ("Differences from TAO's documentation", DOCUMENTATION_DIFFERENCES),
    ):
        lines += ["", f"## {title}", "", "| field | what differs | reason |", "|---|---|---|"]
        lines += [
            f"| `{name}` | {aspects.replace(' ', ', ')} | {reason} |" for name, (aspects, reason) in table.items()
        ]
    lines += ["", "## Other spellings", "", "| written | means |", "|---|---|"]
    lines += [f"| `{name}` | `{meaning}` |" for name, meaning in FIELD_ALIASES.items()]
    for name, aliases in VALUE_ALIASES.items():
        lines += [f"| `{name}: {alias}` | `{value}` |" for alias, value in aliases.items()]
    return "\n".join(lines) + "\n"


def unused_fields() -> dict[str, str]:
    """Accepted field without effect -> reason; those of the teacher are the fields of `model`."""
    return {name: reason for name, reason in reasons("unused").items() if not name.startswith("distill.teacher.")}


def _reference_section(cls: Any, prefix: str, title: str, lines: list[str]) -> None:
    lines += ["", f"## {title}", "", (cls.__doc__ or "").strip(), ""]
    if prefix == "distill.teacher.":
        lines += ["The fields of `model`, with the same defaults."]
        return
    lines += ["| field | type | default | allowed | AutoML | origin | meaning |", "|---|---|---|---|---|---|---|"]
    inner = []
    for entry in dataclasses.fields(cls):
        hint = hints_of(cls)[entry.name]
        section, items = section_type(hint), item_type(hint)
        if section or items:
            inner.append((section or items, f"{prefix}{entry.name}{'[]' if items else ''}."))
        if not section or default_of(entry) is None:
            lines.append(_reference_row(entry, hint))
    for section, name in inner:
        _reference_section(section, name, f"`{name[:-1]}`", lines)


def _reference_row(entry: dataclasses.Field[Any], hint: Any) -> str:
    rules = entry.metadata
    allowed = bounds_text(entry).strip().removeprefix("of ")
    if rules["options"]:
        allowed = options_text(entry)
    unit = f" ({rules['unit']})" if rules["unit"] else ""
    origin = "" if rules["origin"] == "tao" else f"*{rules['origin']}*"
    cells = (
        f"`{entry.name}`",
        _type_text(hint),
        f"`{json.dumps(default_of(entry))}`",
        (allowed + unit).strip(),
        "yes" if rules["automl"] else "",
        origin,
        rules["help"],
    )
    return f"| {' | '.join(cells)} |"


def _type_text(hint: Any) -> str:
    """`list[int] or null`; `section` for a section."""
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        return f"{_type_text(next(a for a in arguments if a is not type(None)))} or null"
    if arguments:
        return f"{typing.get_origin(hint).__name__}[{', '.join(map(_type_text, arguments))}]"
    return "section" if dataclasses.is_dataclass(hint) else "any" if hint is Any else hint.__name__
