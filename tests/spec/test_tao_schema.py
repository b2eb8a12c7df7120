"""Our schema compared with NVIDIA's, field by field, for each version whose specs load."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rtdetr_tool.spec import ExperimentSpec, spec_from_dict, spec_to_dict
from rtdetr_tool.spec.fields import default_of
from rtdetr_tool.spec.schema import section_type, walk_fields
from rtdetr_tool.spec.tables import DIFFERENCES, DIFFERENCES_OF_VERSION, TAO_VERSIONS

INF = float("inf")
ROOT = Path(__file__).parents[2]
TABLES = Path(__file__).parent / "tao_schemas"
Table = dict[str, dict[str, Any]]


def script() -> ModuleType:
    location = importlib.util.spec_from_file_location("tao_schema_table", ROOT / "scripts" / "tao_schema_table.py")
    module = importlib.util.module_from_spec(location)
    location.loader.exec_module(module)
    return module


SCRIPT = script()


def tao_table(version: str) -> Table:
    return json.loads((TABLES / f"{version}.json").read_text(encoding="utf-8"))


def our_table() -> Table:
    table = {}
    for name, entry, hint in walk_fields():
        rules = entry.metadata
        if section_type(hint):
            if default_of(entry) is None:
                table[name] = SCRIPT.ABSENT_SECTION
            continue
        table[name] = {
            "type": SCRIPT.type_text(hint),
            "default": default_of(entry),
            "min": rules["min"] if rules["above"] is None else f"above {float(rules['above'])}",
            "max": None if rules["max"] == INF else rules["max"],
            "options": None if rules["options"] is None else list(rules["options"]),
            "automl": rules["automl"],
        }
    return table


def compare(theirs: Table, ours: Table) -> dict[str, set[str]]:
    """Field -> the aspects in which ours differs."""
    result = {}
    for name in theirs.keys() & ours.keys():
        if different := {aspect for aspect, value in theirs[name].items() if value != ours[name][aspect]}:
            result[name] = different
    return result


def stated_differences(version: str) -> dict[str, set[str]]:
    rows = {**DIFFERENCES, **DIFFERENCES_OF_VERSION[version]}
    stated = {name: set(aspects.split()) for name, (aspects, _) in rows.items()}
    return stated | {f"distill.teacher.{name[6:]}": aspects for name, aspects in stated.items() if name[:6] == "model."}


@pytest.mark.parametrize("version", TAO_VERSIONS)
def test_no_field_of_tao_is_missing(version):
    assert not tao_table(version).keys() - our_table().keys()


def test_every_field_beyond_tao_is_marked():
    beyond = our_table().keys() - set().union(*map(tao_table, TAO_VERSIONS))
    marked = {name for name, entry, _ in walk_fields() if entry.metadata["origin"] != "tao"}
    assert beyond == marked


@pytest.mark.parametrize("version", TAO_VERSIONS)
def test_types_defaults_bounds_options_and_automl_are_those_of_tao_but_for_the_tables(version):
    assert compare(tao_table(version), our_table()) == stated_differences(version)


@pytest.mark.parametrize(
    ("aspect", "value"),
    [("default", 7), ("min", -5), ("max", 9), ("options", [1]), ("automl", False), ("type", "str")],
)
def test_a_changed_default_bound_or_option_would_be_noticed(aspect, value):
    reference, ours = tao_table("7.3.0"), our_table()
    changed = {**ours, "dataset.batch_size": {**ours["dataset.batch_size"], aspect: value}}
    assert compare(reference, changed)["dataset.batch_size"] == {aspect}
    assert reference["train.optim.lr"]["min"] == "above 0.0"


def test_the_table_of_the_installed_version_is_what_the_package_says():
    pytest.importorskip("nvidia_tao_core", reason="nvidia-tao-core (dev dependency) is not installed")
    table = json.loads(json.dumps(SCRIPT.table_of_package()))
    assert table == tao_table(importlib.metadata.version("nvidia-tao-core"))


def whole_spec(table: Table) -> dict[str, Any]:
    """The spec with every field of a version at its default."""
    data: dict[str, Any] = {}
    for name, facts in table.items():
        *sections, leaf = name.split(".")
        if "[]" in name:
            continue
        place = data
        for section in sections:
            place = place.setdefault(section, {})
            if place is None:
                break
        else:
            place[leaf] = facts["default"]
    return data


@pytest.mark.parametrize("version", TAO_VERSIONS)
def test_the_default_spec_of_tao_loads_and_equals_ours(version):
    data = whole_spec({name: facts for name, facts in tao_table(version).items() if not name.startswith("distill.")})
    reference, ours = spec_to_dict(spec_from_dict(data)), spec_to_dict(ExperimentSpec())
    for side in ("input_width", "input_height"):
        assert (reference["export"].pop(side), ours["export"].pop(side)) == (640, None)
    assert reference.pop("results_dir") == ("" if version == "7.3.0" else "/results")
    assert ours.pop("results_dir") == "/results"
    assert reference == ours


def test_the_teacher_takes_every_field_of_the_model_in_tao_73():
    table = tao_table("7.3.0")
    teacher = whole_spec({name[8:]: facts for name, facts in table.items() if name.startswith("distill.teacher.")})
    spec = spec_from_dict({"distill": {"teacher": teacher["teacher"], "pretrained_teacher_model_path": "a.pth"}})
    assert dataclasses.asdict(spec.distill.teacher) == dataclasses.asdict(ExperimentSpec().model)
