"""Write what TAO's schema of RT-DETR says about each field, as a table that tests compare ours with.

nvidia-tao-core is proprietary and only one version can be installed, so the tests read tables of facts: name, type,
default, bounds, options and whether AutoML may vary a field. For a version that is not installed:

    pip install --no-deps --target /tmp/tao nvidia-tao-core==7.3.0
    python scripts/tao_schema_table.py /tmp/tao
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import re
import sys
import typing
from pathlib import Path
from typing import Any

from rtdetr_tool.spec.schema import item_type, section_type

TABLES = Path(__file__).parent.parent / "tests" / "spec" / "tao_schemas"
ABSENT_SECTION = dict.fromkeys(("default", "min", "max", "options")) | {"type": "section or null", "automl": False}


def table_of_package() -> dict[str, dict[str, Any]]:
    """Dotted name -> facts, for every field of the package that Python finds."""
    from nvidia_tao_core.config.rtdetr.default_config import ExperimentConfig

    fields: dict[str, dict[str, Any]] = {}

    def walk(instance: Any, prefix: str) -> None:
        for entry in dataclasses.fields(instance):
            name, value = prefix + entry.name, getattr(instance, entry.name)
            section, items = section_type(entry.type), item_type(entry.type)
            if value is None and section:
                fields[name] = ABSENT_SECTION
                value = section()
            if dataclasses.is_dataclass(value):
                walk(value, f"{name}.")
                continue
            # model_name is filled in by the package's __post_init__; its schema default is None
            fields[name] = facts_of(entry, None if name == "model_name" else value)
            if items:
                walk(items(), f"{name}[].")

    walk(ExperimentConfig(), "")
    return fields


def facts_of(entry: dataclasses.Field, value: Any) -> dict[str, Any]:
    """Bounds given only as text (`> 0`) count as bounds."""
    metadata = entry.metadata
    low, high = _bound(metadata.get("valid_min")), _bound(metadata.get("valid_max"))
    condition = re.fullmatch(r"\s*>\s*([\d.]+)\s*", metadata.get("math_cond") or "")
    if condition and (low is None or low == float(condition.group(1))):
        low = f"above {float(condition.group(1))}"
    kind = type_text(entry.type)
    low = 1 if kind == "int" and low == "above 0.0" else low
    options = metadata.get("valid_options") or None
    if options:
        options = [int(option) if kind.startswith("int") else option for option in options.split(",")]
    automl = metadata.get("automl_enabled") == "TRUE"
    return {"type": kind, "default": value, "min": low, "max": high, "options": options, "automl": automl}


def _bound(value: Any) -> Any:
    return None if value in ("", None, "inf") else value


def type_text(hint: Any) -> str:
    """One spelling for `Optional[List[str]]` and `list[str] | None`; items of lists are walked separately."""
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        return f"{type_text(next(a for a in arguments if a is not type(None)))} or null"
    if arguments:
        return f"{typing.get_origin(hint).__name__}[{', '.join(map(type_text, arguments))}]"
    return "section" if dataclasses.is_dataclass(hint) else "Any" if hint is typing.Any else hint.__name__


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="folder with the package, as `pip install --target` writes it")
    options = parser.parse_args(arguments)
    sys.path.insert(0, options.folder)
    version = next(iter(importlib.metadata.distributions(name="nvidia-tao-core", path=[options.folder]))).version
    path = TABLES / f"{version}.json"
    rows = [f"  {json.dumps(name)}: {json.dumps(facts)}" for name, facts in table_of_package().items()]
    path.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
    print(f"Wrote {path}")


if __name__ == "__main__":
    main()
