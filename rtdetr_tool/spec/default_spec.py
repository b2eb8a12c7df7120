"""The default spec of a command: as plain data and as commented YAML.

Fields whose default depends on `train.preset`, `dataset.augmentation.policy` or the model (training recipe, image
sizes) are not set: a value would take precedence over them. In YAML they are comments with RT-DETR's value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rtdetr_tool.families import all_families
from rtdetr_tool.families.base import SIZE_FIELDS
from rtdetr_tool.spec.augmentation_policy import OFF, SCHEDULE_FIELDS
from rtdetr_tool.spec.commands import WITH_SPEC
from rtdetr_tool.spec.convert import bounds_text, options_text
from rtdetr_tool.spec.dataset import DatasetSpec
from rtdetr_tool.spec.distill import RECOMMENDED_BINDING
from rtdetr_tool.spec.experiment import ExperimentSpec
from rtdetr_tool.spec.fields import MISSING, default_of
from rtdetr_tool.spec.preset import FAST
from rtdetr_tool.spec.queries import reasons
from rtdetr_tool.spec.schema import hints_of, section_type

_ABOUT_COMMENTS = (
    "# Fields in comments, such as `# precision: fp32`, are not set: their defaults depend on train.preset,",
    "# dataset.augmentation.policy and the model. The values are those of RT-DETR with preset tao.",
)


def default_data(command: str) -> dict[str, Any]:
    """The default spec of a command as plain data, `???` where the user must give a value."""
    return _without_dependent(_all_values(command), "")


def dependent_fields() -> frozenset[str]:
    """Dotted names of the fields whose default depends on `train.preset`, on the policy or on the model."""
    recipes = (name for family in all_families() for name in family.recipe)
    of_augmentation = (f"dataset.augmentation.{name}" for name in (*SIZE_FIELDS, *OFF, *SCHEDULE_FIELDS))
    return frozenset((*(f"train.{name}" for name in FAST), *recipes, *of_augmentation))


def _all_values(command: str) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for entry in dataclasses.fields(ExperimentSpec):
        if entry.name in WITH_SPEC[command].sections:
            section = section_type(hints_of(ExperimentSpec)[entry.name])
            data[entry.name] = _section_data(section) if section else default_of(entry)
    if "dataset" in data:
        data["dataset"] = {name: value for name, value in data["dataset"].items() if name in _dataset_fields(command)}
    for needed in WITH_SPEC[command].requires:
        if needed.unless and needed.is_waived_by(_at(data, needed.unless[0].split("."))):
            continue
        *path, leaf = needed.fields[0].split(".")
        _at(data, path)[leaf] = _placeholder(leaf)
    if command == "distill":
        data["distill"]["bindings"] = [dict(RECOMMENDED_BINDING)]
    _drop_inert(data, "")
    return data


def _at(data: Any, path: Sequence[str]) -> Any:
    for part in path:
        data = data[part]
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


def _without_dependent(data: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The data without `dependent_fields` and sections of only those."""
    kept: dict[str, Any] = {}
    for key, value in data.items():
        if f"{prefix}{key}" in dependent_fields():
            continue
        inner = _without_dependent(value, f"{prefix}{key}.") if isinstance(value, dict) else value
        if inner or not value or not isinstance(value, dict):
            kept[key] = inner
    return kept


def default_yaml(command: str) -> str:
    """The commented default spec of a command."""
    data = _all_values(command)
    lines = [f"# Default spec of `rtdetr {command}`. ??? marks required values."]
    if data != default_data(command):
        lines += _ABOUT_COMMENTS
    if "model" not in WITH_SPEC[command].sections and command not in ("gen_trt_engine", "validate_data"):
        lines.append("# Architecture, classes and sizes come from the checkpoint.")
    _yaml_section(data, ExperimentSpec, 0, lines)
    return "\n".join(lines) + "\n"


def whole_yaml() -> str:
    """The commented spec with the fields of all commands, as TAO's `default_specs` writes it."""
    data = _section_data(ExperimentSpec)
    data["distill"] = None
    _drop_inert(data, "")
    lines = ["# Default spec of all commands of `rtdetr`. ??? marks required values.", *_ABOUT_COMMENTS]
    _yaml_section(data, ExperimentSpec, 0, lines)
    return "\n".join(lines) + "\n"


def _yaml_section(data: dict[str, Any], cls: type, depth: int, lines: list[str], prefix: str = "") -> None:
    pad = "  " * depth
    entries = {entry.name: entry for entry in dataclasses.fields(cls)}
    for key, value in data.items():
        section = section_type(hints_of(cls)[key])
        comment = comment_of(entries[key])
        if section and isinstance(value, dict):
            if depth == 0:
                lines.append("")
            hidden = "" if _without_dependent(value, f"{prefix}{key}.") else "# "
            lines += [f"{pad}# {comment}", f"{pad}{hidden}{key}:"]
            _yaml_section(value, section, depth + 1, lines, f"{prefix}{key}.")
        else:
            hidden = "# " if f"{prefix}{key}" in dependent_fields() else ""
            lines += [f"{pad}# {comment}", f"{pad}{hidden}{key}: {_yaml_value(value)}"]


def _yaml_value(value: Any) -> str:
    import yaml

    if isinstance(value, float) and value == value and "e" in repr(value):
        return f"{value:.10f}".rstrip("0")  # YAML 1.1 reads 1e-05 as a text
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).strip()
    return str(text.removesuffix("...").strip())


def comment_of(entry: dataclasses.Field[Any]) -> str:
    """Help, options, bounds, unit and what AutoML may vary, in one line."""
    rules = entry.metadata
    parts = [rules["help"]]
    if rules["options"]:
        parts.append(f"One of: {options_text(entry)}.")
    bounds = bounds_text(entry).strip().removeprefix("of ")
    if bounds and not rules["options"]:
        parts.append(f"Allowed: {bounds}.")
    if rules["unit"]:
        parts.append(f"Unit: {rules['unit']}.")
    if rules["automl"]:
        parts.append("AutoML may vary it (automl_enabled).")
    return " ".join(parts)
