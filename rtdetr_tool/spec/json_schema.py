"""JSON Schema of specs, for editors and other programs."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from rtdetr_tool.spec.commands import WITH_SPEC
from rtdetr_tool.spec.experiment import ExperimentSpec
from rtdetr_tool.spec.fields import MISSING, default_of
from rtdetr_tool.spec.schema import hints_of
from rtdetr_tool.spec.tables import (
    SOURCE_KEYS,
    VALUE_ALIASES,
)


def json_schema(command: str) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a spec; all sections are allowed, and values that `command` needs are required."""
    schema = _schema_of_section(ExperimentSpec)
    requirements = [
        {
            "anyOf": [
                *(_require(name.split("."), needed.null_is_default) for name in needed.fields),
                *([_waiver(*needed.unless)] if needed.unless else []),
            ]
        }
        for needed in WITH_SPEC[command].requires
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Spec of rtdetr {command}",
        **schema,
        "allOf": requirements,
    }


def _waiver(name: str, value: str | bool | None) -> dict[str, Any]:
    """The schema of a spec in which another field makes a requirement unnecessary; switches are off by default."""
    path = name.split(".")
    return {"not": _require(path, False, True)} if value is False else _require(path, False, value)


def _require(path: list[str], null: bool, value: str | bool | None = None) -> dict[str, Any]:
    """The schema of a spec that has this field, with `value` if it is given."""
    if len(path) == 1 and null:
        return {"required": path}
    last = {"not": {"type": "null"}} if value is None else {"const": value}
    inner = last if len(path) == 1 else _require(path[1:], null, value)
    return {"required": [path[0]], "properties": {path[0]: inner}}


def _schema_of_section(cls: Any) -> dict[str, Any]:
    properties = {
        entry.name: {
            "description": entry.metadata["help"],
            **_schema_of_field(hints_of(cls)[entry.name], entry),
            **({} if dataclasses.is_dataclass(default_of(entry)) else {"automl_enabled": entry.metadata["automl"]}),
        }
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
            schema = {"anyOf": [schema, {"type": "array", "items": schema}]}  # a single source is a list of one
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
    if default in (MISSING, None, ""):  # what the loader treats as not set
        schema = {"anyOf": [*schema.pop("anyOf", [schema]), {"const": MISSING}], **schema}
    return schema


def _schema_of_source(name: str) -> dict[str, Any]:
    keys = [key for form in SOURCE_KEYS[name] for keys in form for key in keys]
    properties: dict[str, Any] = {key: {"type": "string"} for key in keys}
    if name == "infer_data_sources":
        properties["image_dir"] = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
        one = {"type": ["string", "integer"]}
        properties["video"] = {"anyOf": [one, {"type": "array", "items": one}, {"type": "null"}]}
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
