"""Whatever a spec file or an override says, the answer is a spec or a `SpecError` that names each problem."""

from __future__ import annotations

import copy
import dataclasses
import json

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rtdetr_tool.errors import SpecError
from rtdetr_tool.spec import ExperimentSpec, load_spec, spec_from_dict, spec_to_dict
from rtdetr_tool.spec.convert import from_plain, item_type, section_type, walk_fields
from rtdetr_tool.spec.fields import default_of
from rtdetr_tool.spec.load import COMMANDS
from rtdetr_tool.spec.render import json_schema

NAMES = [name for name, _, _ in walk_fields() if "[]" not in name]
LEAVES = [name for name, entry, hint in walk_fields() if "[]" not in name and not section_type(hint)]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["???", "${results_dir}", "${nowhere}", "${", "1e-4", "auto", "-1", "true", "", " ", "a,b", "ü"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
changes = st.lists(st.tuples(st.sampled_from([*NAMES, "trian", "train.optim.extra", "model.0"]), values), max_size=5)


def changed(pairs) -> dict:
    data = spec_to_dict(ExperimentSpec())
    for name, value in pairs:
        *path, leaf = name.split(".")
        place = data
        for part in path:
            if not isinstance(place.get(part), dict):
                place[part] = {}
            place = place[part]
        place[leaf] = copy.deepcopy(value)
    return data


@given(changes, st.sampled_from([None, *COMMANDS]))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_plain_data_becomes_a_spec_or_a_spec_error(pairs, command):
    try:
        spec = spec_from_dict(changed(pairs), command)
    except SpecError as error:
        assert error.problems
        assert all(isinstance(problem, str) and problem for problem in error.problems)
    else:
        again = spec_from_dict(json.loads(json.dumps(spec_to_dict(spec))), command)
        assert again == spec


@given(st.lists(st.tuples(st.sampled_from(NAMES), values), max_size=4))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_yaml_files_become_a_spec_or_a_spec_error(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("fuzz") / "spec.yaml"
    path.write_text(yaml.safe_dump(changed(pairs), allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    _load_or_refuse(path)


@given(st.binary(max_size=60) | st.text(alphabet="{}[]:,-&*!?|>'\"%@`# \n\tabtrain0${}.", max_size=60).map(str.encode))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_bytes_become_a_spec_or_a_spec_error(tmp_path_factory, content):
    for suffix in (".yaml", ".json"):
        path = tmp_path_factory.mktemp("fuzz") / f"spec{suffix}"
        path.write_bytes(content)
        _load_or_refuse(path)


@given(
    st.lists(
        st.one_of(
            st.text(max_size=20),
            st.builds(
                "{}{}={}".format, st.sampled_from(["", "+", "++", "~"]), st.sampled_from(LEAVES), st.text(max_size=12)
            ),
            st.builds(
                "{}={}".format, st.sampled_from(NAMES), st.sampled_from(["1", "[1,2]", "{a: 1}", "null", "${x}"])
            ),
        ),
        min_size=1,
        max_size=3,
    )
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_override_becomes_a_spec_or_a_spec_error(overrides):
    _load_or_refuse(None, overrides)


def _load_or_refuse(path, overrides=()):
    try:
        assert isinstance(load_spec(path, overrides), ExperimentSpec)
    except SpecError as error:
        assert error.problems


@given(st.sampled_from(LEAVES), values)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_what_the_conversion_accepts_lies_within_the_bounds(name, value):
    problems: list[str] = []
    data: dict = {}
    *path, leaf = name.split(".")
    place = data
    for part in path:
        place = place.setdefault(part, {})
    place[leaf] = value
    result = from_plain(ExperimentSpec, data, problems)
    entry, hint = next((entry, hint) for known, entry, hint in walk_fields() if known == name)
    for part in name.split("."):
        result = getattr(result, part)
    if problems:
        assert item_type(hint) or result == default_of(entry)  # a list of sections keeps their places
        assert problems[0].startswith(name)
    for item in result if isinstance(result, list) else [result]:
        rules = entry.metadata
        if (
            isinstance(item, (int, float))
            and not isinstance(item, bool)
            and name != "dataset.augmentation.multi_scales"
        ):
            assert rules["min"] is None or item >= rules["min"]
            assert rules["max"] is None or item <= rules["max"]
            assert rules["above"] is None or item > rules["above"]
        if rules["options"] and item is not None:
            assert item in rules["options"]


def test_every_default_satisfies_its_own_rules():
    problems: list[str] = []
    spec = from_plain(ExperimentSpec, spec_to_dict(ExperimentSpec()), problems)
    assert not problems
    assert spec == ExperimentSpec()
    assert dataclasses.is_dataclass(spec)
    assert json.loads(json.dumps(json_schema("train"))) == json_schema("train")
