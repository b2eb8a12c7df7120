"""The schema for people and programs: commented YAML, JSON Schema, the reference page."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any

from rtdetr_tool.spec.commands import AVAILABLE, WITH_SPEC
from rtdetr_tool.spec.convert import bounds_text, options_text
from rtdetr_tool.spec.dataset import DatasetSpec
from rtdetr_tool.spec.experiment import ExperimentSpec
from rtdetr_tool.spec.fields import MISSING, default_of
from rtdetr_tool.spec.queries import reasons
from rtdetr_tool.spec.schema import hints_of, item_type, section_type
from rtdetr_tool.spec.tables import (
    DIFFERENCES,
    DOCUMENTATION_DIFFERENCES,
    FIELD_ALIASES,
    RECOMMENDED_BINDING,
    SOURCE_KEYS,
    VALUE_ALIASES,
)


def default_data(command: str) -> dict[str, Any]:
    """The default spec of a command as plain data, `???` where the user must give a value."""
    data: dict[str, Any] = {}
    for entry in dataclasses.fields(ExperimentSpec):
        if entry.name in WITH_SPEC[command].sections:
            section = section_type(hints_of(ExperimentSpec)[entry.name])
            data[entry.name] = _section_data(section) if section else default_of(entry)
    if "dataset" in data:
        data["dataset"] = {name: value for name, value in data["dataset"].items() if name in _dataset_fields(command)}
    for needed in WITH_SPEC[command].requires:
        *path, leaf = needed.fields[0].split(".")
        target = data
        for part in path:
            target = target[part]
        target[leaf] = _placeholder(leaf)
    if command == "distill":
        data["distill"]["bindings"] = [dict(RECOMMENDED_BINDING)]
    _drop_inert(data, "")
    return data


def _dataset_fields(command: str) -> list[str]:
    entries = dataclasses.fields(DatasetSpec)
    return [entry.name for entry in entries if command in (entry.metadata["commands"] or (command,))]


def _placeholder(leaf: str) -> Any:
    if leaf == "train_data_sources":
        return [{"image_dir": MISSING, "json_file": MISSING}]
    if leaf == "infer_data_sources":
        return {"image_dir": MISSING, "classmap": MISSING}
    return {"image_dir": MISSING, "json_file": MISSING} if leaf.endswith("_data_sources") else MISSING


def _section_data(section: type) -> dict[str, Any]:
    data = {}
    for entry in dataclasses.fields(section):
        inner = section_type(hints_of(section)[entry.name])
        data[entry.name] = _section_data(inner) if inner else default_of(entry)
    return data


def _drop_inert(data: dict[str, Any], prefix: str) -> None:
    for key in list(data):
        if f"{prefix}{key}" in reasons("unused"):
            del data[key]
        elif isinstance(data[key], dict):
            _drop_inert(data[key], f"{prefix}{key}.")


def default_yaml(command: str) -> str:
    """The commented default spec of a command."""
    lines = [f"# Default spec of `rtdetr {command}`. ??? marks what must be given."]
    if "model" not in WITH_SPEC[command].sections and command not in ("gen_trt_engine", "validate_data"):
        lines.append("# Architecture, classes and sizes come from the checkpoint.")
    _yaml_section(default_data(command), ExperimentSpec, 0, lines)
    return "\n".join(lines) + "\n"


def _yaml_section(data: dict[str, Any], cls: type, depth: int, lines: list[str]) -> None:
    pad = "  " * depth
    entries = {entry.name: entry for entry in dataclasses.fields(cls)}
    for key, value in data.items():
        section = section_type(hints_of(cls)[key])
        comment = comment_of(entries[key])
        if section and isinstance(value, dict):
            if depth == 0:
                lines.append("")
            lines += [f"{pad}# {comment}", f"{pad}{key}:"]
            _yaml_section(value, section, depth + 1, lines)
        else:
            lines += [f"{pad}# {comment}", f"{pad}{key}: {_yaml_value(value)}"]


def _yaml_value(value: Any) -> str:
    import yaml

    if isinstance(value, float) and value == value and "e" in repr(value):
        return f"{value:.10f}".rstrip("0")  # YAML 1.1 reads 1e-05 as a text
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).strip()
    return str(text.removesuffix("...").strip())


def comment_of(entry: dataclasses.Field[Any]) -> str:
    """Help, unit, options and bounds in one line."""
    rules = entry.metadata
    parts = [rules["help"]]
    if rules["options"]:
        parts.append(f"One of: {options_text(entry)}.")
    bounds = bounds_text(entry).strip().removeprefix("of ")
    if bounds and not rules["options"]:
        parts.append(f"Allowed: {bounds}.")
    if rules["unit"]:
        parts.append(f"Unit: {rules['unit']}.")
    return " ".join(parts)


def json_schema(command: str) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a spec; all sections are allowed, those of `command` come with its needs."""
    schema = _schema_of_section(ExperimentSpec)
    requirements = [
        {"anyOf": [_require(name.split(".")) for name in needed.fields]} for needed in WITH_SPEC[command].requires
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Spec of rtdetr {command}",
        **schema,
        "allOf": requirements,
    }


def _require(path: list[str]) -> dict[str, Any]:
    inner = {"not": {"type": "null"}} if len(path) == 1 else _require(path[1:])
    return {"required": [path[0]], "properties": {path[0]: inner}}


def _schema_of_section(cls: Any) -> dict[str, Any]:
    properties = {
        entry.name: {"description": entry.metadata["help"], **_schema_of_field(hints_of(cls)[entry.name], entry)}
        for entry in dataclasses.fields(cls)
    }
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _schema_of_field(hint: Any, entry: dataclasses.Field[Any]) -> dict[str, Any]:
    arguments = typing.get_args(hint)
    if isinstance(hint, types.UnionType) or type(None) in arguments:
        inner = next(a for a in arguments if a is not type(None))
        schema = _schema_of_field(inner, entry)
    elif dataclasses.is_dataclass(hint):
        return _schema_of_section(hint)
    elif entry.name in SOURCE_KEYS:
        schema = _schema_of_source(entry.name)
        if typing.get_origin(hint) is list:
            schema = {"anyOf": [schema, {"type": "array", "items": schema}]}  # one source stands for a list of one
    elif typing.get_origin(hint) is list:
        items = _schema_of_item(arguments[0], entry)
        schema = {"type": "array", "items": items}
    else:
        schema = _schema_of_item(hint, entry)
    if type(None) in arguments:
        schema = {"anyOf": [schema, {"type": "null"}]}
    default = default_of(entry)
    if not dataclasses.is_dataclass(default):
        schema = {**schema, "default": default}
    if default == MISSING:
        schema = {"anyOf": [schema, {"type": "null"}], "default": default}
    if default in (MISSING, None, ""):  # what the loader takes for "not given"
        schema = {"anyOf": [*schema.pop("anyOf", [schema]), {"const": MISSING}], **schema}
    return schema


def _schema_of_source(name: str) -> dict[str, Any]:
    keys = [key for form in SOURCE_KEYS[name] for keys in form for key in keys]
    properties: dict[str, Any] = {key: {"type": "string"} for key in keys}
    if name == "infer_data_sources":
        properties["image_dir"] = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
        properties["classmap"] = {"type": ["string", "null"]}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _schema_of_item(hint: Any, entry: dataclasses.Field[Any]) -> dict[str, Any]:
    if dataclasses.is_dataclass(hint):
        return _schema_of_section(hint)
    if typing.get_origin(hint) is dict:
        return {"type": "object", "additionalProperties": _schema_of_item(typing.get_args(hint)[1], entry)}
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string"}
    schema: dict[str, Any] = {"type": kinds[hint]} if hint in kinds else {}
    rules = entry.metadata
    if rules["options"]:
        aliases = {a for table in VALUE_ALIASES.values() for a, v in table.items() if v in rules["options"]}
        schema["enum"] = [*rules["options"], *sorted(aliases)]
    if rules["prefix"]:
        schema = {"anyOf": [schema, {"type": "string", "pattern": f"^{rules['prefix']}."}]}
    for key, word in (("min", "minimum"), ("max", "maximum"), ("above", "exclusiveMinimum")):
        if rules[key] is not None and abs(rules[key]) != float("inf"):
            schema[word] = rules[key]
    if rules["names"]:
        schema = {"anyOf": [schema, {"enum": [*rules["names"], *rules["names"].values()]}]}
    return schema


def reference_page() -> str:
    """`docs/spec.md`: every field with type, default, range, origin and help."""
    lines = [
        "# Spec reference",
        "",
        "Generated from `rtdetr_tool/spec` by `python scripts/generate_spec_reference.py`; do not edit.",
        "",
        "Origin: blank = TAO's schema (nvidia-tao-core 6.25.11); *seed* = TAO's documentation only; *ours* = added "
        "here. `???` must be given for the commands that need it. "
        f"Sections that are checked, but read by no command yet: {', '.join(WITH_SPEC.keys() - AVAILABLE.keys())}.",
    ]
    _reference_section(ExperimentSpec, "", "Top level", lines)
    lines += [
        "",
        "## Accepted without effect",
        "",
        "Setting one prints the reason.",
        "",
        "| field | reason |",
        "|---|---|",
    ]
    lines += [f"| `{name}` | {reason} |" for name, reason in unused_fields().items()]
    for title, table in (
        ("Differences from nvidia-tao-core 6.25.11", DIFFERENCES),
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
    lines += ["| field | type | default | allowed | origin | meaning |", "|---|---|---|---|---|---|"]
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
        origin,
        rules["help"],
    )
    return f"| {' | '.join(cells)} |"


def _type_text(hint: Any) -> str:
    """`list[int] or null`; a section is called so."""
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        return f"{_type_text(next(a for a in arguments if a is not type(None)))} or null"
    if arguments:
        return f"{typing.get_origin(hint).__name__}[{', '.join(map(_type_text, arguments))}]"
    return "section" if dataclasses.is_dataclass(hint) else "any" if hint is Any else hint.__name__
