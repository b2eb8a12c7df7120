"""Our schema against NVIDIA's, field by field."""

from __future__ import annotations

import dataclasses
import re
import typing

import pytest

from rtdetr_tool.spec.fields import default_of
from rtdetr_tool.spec.schema import item_type, section_type, walk_fields
from rtdetr_tool.spec.tables import DIFFERENCES

pytest.importorskip("nvidia_tao_core", reason="nvidia-tao-core (dev dependency) is not installed")
from nvidia_tao_core.config.rtdetr import default_config as tao

INF = float("inf")


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a schema says about one field."""

    type: str
    default: object
    min: float | None
    max: float | None
    options: tuple | None
    automl: bool


ABSENT_SECTION = Rules("section or null", None, None, None, None, False)


def tao_fields() -> dict[str, Rules]:
    found = {}

    def walk(instance, prefix):
        for entry in dataclasses.fields(instance):
            name, value = prefix + entry.name, getattr(instance, entry.name)
            section, items = section_type(entry.type), item_type(entry.type)
            if value is None and section:
                found[name] = ABSENT_SECTION
                value = section()
            if dataclasses.is_dataclass(value):
                walk(value, f"{name}.")
                continue
            # model_name is filled in by TAO's __post_init__; its schema default is None
            found[name] = tao_rules(entry, None if name == "model_name" else value)
            if items:
                walk(items(), f"{name}[].")

    walk(tao.ExperimentConfig(), "")
    return found


def tao_rules(entry: dataclasses.Field, value: object) -> Rules:
    metadata = entry.metadata
    low, high = _bound(metadata.get("valid_min")), _bound(metadata.get("valid_max"))
    condition = re.fullmatch(r"\s*>\s*([\d.]+)\s*", metadata.get("math_cond") or "")
    if condition and low is None:
        low = f"above {float(condition.group(1))}"
    kind = type_text(entry.type)
    options = metadata.get("valid_options") or None
    if options:
        options = tuple(int(o) if kind.startswith("int") else o for o in options.split(","))
    return Rules(kind, value, low, high, options, metadata.get("automl_enabled") == "TRUE")


def our_fields() -> dict[str, Rules]:
    found = {}
    for name, entry, hint in walk_fields():
        rules = entry.metadata
        if section_type(hint):
            if default_of(entry) is None:
                found[name] = ABSENT_SECTION
            continue
        low = rules["min"] if rules["above"] is None else f"above {float(rules['above'])}"
        high = None if rules["max"] == INF else rules["max"]
        found[name] = Rules(type_text(hint), default_of(entry), low, high, rules["options"], rules["automl"])
    return found


def _bound(value):
    return None if value in ("", None, "inf") else value


def type_text(hint) -> str:
    """One spelling for `Optional[List[str]]` and `list[str] | None`; items of lists are walked on their own."""
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        return f"{type_text(next(a for a in arguments if a is not type(None)))} or null"
    if arguments:
        return f"{typing.get_origin(hint).__name__}[{', '.join(map(type_text, arguments))}]"
    return "section" if dataclasses.is_dataclass(hint) else "Any" if hint is typing.Any else hint.__name__


def compare(theirs: dict[str, Rules], ours: dict[str, Rules]) -> dict[str, set[str]]:
    """Field -> the aspects in which ours is not theirs."""
    result = {}
    for name, rules in theirs.items():
        if name in ours:
            different = {
                aspect.name
                for aspect in dataclasses.fields(Rules)
                if getattr(rules, aspect.name) != getattr(ours[name], aspect.name)
            }
            if different:
                result[name] = different
    return result


def table_of(differences: dict[str, tuple[str, str]]) -> dict[str, set[str]]:
    return {name: set(aspects.split()) for name, (aspects, _) in differences.items()}


def test_no_field_of_tao_is_missing():
    assert not tao_fields().keys() - our_fields().keys()


def test_every_field_beyond_tao_is_marked():
    beyond = our_fields().keys() - tao_fields().keys()
    marked = {name for name, entry, _ in walk_fields() if entry.metadata["origin"] != "tao"}
    assert beyond == marked


def test_types_defaults_bounds_options_and_automl_are_those_of_tao_but_for_the_table():
    model = {name: aspects for name, aspects in table_of(DIFFERENCES).items() if name.startswith("model.")}
    expected = table_of(DIFFERENCES) | {f"distill.teacher.{name[6:]}": aspects for name, aspects in model.items()}
    assert compare(tao_fields(), our_fields()) == expected


def test_a_changed_default_bound_or_option_would_be_noticed():
    theirs, ours = tao_fields(), our_fields()
    for aspect, value in [
        ("default", 7),
        ("min", -5),
        ("max", 9),
        ("options", (1,)),
        ("automl", False),
        ("type", "str"),
    ]:
        changed = {**ours, "dataset.batch_size": dataclasses.replace(ours["dataset.batch_size"], **{aspect: value})}
        assert compare(theirs, changed)["dataset.batch_size"] == {aspect}
    assert theirs["train.optim.lr"].min == "above 0.0"


def test_the_default_spec_of_tao_loads_and_equals_ours():
    from omegaconf import OmegaConf

    from rtdetr_tool.spec import ExperimentSpec, spec_from_dict, spec_to_dict

    data = OmegaConf.to_container(OmegaConf.structured(tao.ExperimentConfig))
    theirs, ours = spec_to_dict(spec_from_dict(data)), spec_to_dict(ExperimentSpec())
    for side in ("input_width", "input_height"):
        assert (theirs["export"].pop(side), ours["export"].pop(side)) == (640, None)
    assert theirs == ours
