"""Any spec file or override gives a spec or a `SpecError` that lists each problem."""

from __future__ import annotations

import copy
import dataclasses
import json
import resource
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtdetr_tool.errors import SpecError
from rtdetr_tool.spec import ExperimentSpec, load_spec, spec_from_dict, spec_to_dict
from rtdetr_tool.spec.commands import WITH_SPEC
from rtdetr_tool.spec.convert import from_plain
from rtdetr_tool.spec.fields import default_of
from rtdetr_tool.spec.json_schema import json_schema
from rtdetr_tool.spec.schema import item_type, section_type, walk_fields

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


@given(changes, st.sampled_from([None, *WITH_SPEC]))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_plain_data_becomes_a_spec_or_a_spec_error(pairs, command):
    try:
        spec = spec_from_dict(changed(pairs), command)
    except SpecError as error:
        assert error.problems
        assert all(isinstance(problem, str) and problem for problem in error.problems)
    else:
        again = spec_from_dict(json.loads(json.dumps(spec_to_dict(spec))), command)
        assert again == spec


def check_yaml_file(tmp_path_factory, pairs) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "spec.yaml"
    path.write_text(yaml.safe_dump(changed(pairs), allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    _load_or_refuse(path)


@given(changes)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_yaml_files_become_a_spec_or_a_spec_error(tmp_path_factory, pairs):
    check_yaml_file(tmp_path_factory, pairs)


@pytest.mark.slow
@given(changes)
@settings(max_examples=1_000, deadline=None, suppress_health_check=list(HealthCheck))
def test_thousands_of_yaml_files_become_a_spec_or_a_spec_error(tmp_path_factory, pairs):
    check_yaml_file(tmp_path_factory, pairs)


@given(st.binary(max_size=60) | st.text(alphabet="{}[]:,-&*!?|>'\"%@`# \n\tabtrain0${}.", max_size=60).map(str.encode))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_bytes_become_a_spec_or_a_spec_error(tmp_path_factory, content):
    for suffix in (".yaml", ".json"):
        path = tmp_path_factory.mktemp("fuzz") / f"spec{suffix}"
        path.write_bytes(content)
        _load_or_refuse(path)


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
        assert item_type(hint) or result == default_of(entry)  # a list of sections keeps their positions
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


# Corruption of real files: bytes, lines and structure.

FILES = sorted((Path(__file__).parents[2] / "specs").glob("*.yaml"))
PIECES = (
    "&a", "*a", "<<: *a", "!!python/object/apply:os.system [x]", "!!binary x", "!!int ''", "!!set {a}", "? ", "- ", "{",
    "[", "}", "]", "|", ">-", "\t", "\0", "%YAML 1.3", "---", "...", "#", "'", '"', "${", "${train}", "${oc.env:HOME}",
    "${.x}", "${a.${b}}", ": ", "~", "0x" + "f" * 40, "9" * 5000, "1e999", ".nan", "\ufeff", "\u2028", "[[[[[[[[[[[[",
)  # fmt: skip
damages = st.lists(
    st.tuples(
        st.sampled_from(["insert", "replace", "delete", "double", "swap", "cut", "byte"]),
        st.integers(0, 2**20),
        st.integers(1, 200),
        st.sampled_from(PIECES),
    ),
    min_size=1,
    max_size=5,
)
MOST_SECONDS, MOST_MEGABYTES = 60, 2_000


def damaged(content: bytes, pairs) -> bytes:
    for how, place, count, piece in pairs:
        place %= len(content) + 1
        before, inside, after = content[:place], content[place : place + count], content[place + count :]
        content = {
            "insert": before + piece.encode("utf-8", "surrogatepass") + inside + after,
            "replace": before + piece.encode("utf-8", "surrogatepass") + after,
            "delete": before + after,
            "double": before + inside + inside + after,
            "swap": after + inside + before,
            "cut": before,
            "byte": before + bytes([count]) + inside[1:] + after,
        }[how]
    return content


def load_within_limits(path, overrides=()) -> None:
    """`_load_or_refuse`, bounded in time and in the memory of this process."""
    start = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _load_or_refuse(path, overrides)
    assert time.process_time() - start < MOST_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MOST_MEGABYTES


def check_damaged_file(tmp_path_factory, file: Path, pairs, as_json: bool) -> None:
    path = tmp_path_factory.mktemp("fuzz") / ("spec.json" if as_json else "spec.yaml")
    content = json.dumps(yaml.safe_load(file.read_bytes())).encode() if as_json else file.read_bytes()
    path.write_bytes(damaged(content, pairs))
    load_within_limits(path)


@given(st.sampled_from(FILES), damages, st.booleans())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_damaged_files_become_a_spec_or_a_spec_error(tmp_path_factory, file, pairs, as_json):
    check_damaged_file(tmp_path_factory, file, pairs, as_json)


@pytest.mark.slow
@given(st.sampled_from(FILES), damages, st.booleans())
@settings(max_examples=3_000, deadline=None, suppress_health_check=list(HealthCheck))
def test_thousands_of_damaged_files_become_a_spec_or_a_spec_error(tmp_path_factory, file, pairs, as_json):
    check_damaged_file(tmp_path_factory, file, pairs, as_json)


# Structures that only exist in YAML: anchors, aliases, merge keys and tags at any position.

nodes = st.recursive(
    st.sampled_from(["1", "x", "*a", "*b", "null", "!!str 1", "!!int x", "!foo y", "${train.seed}", '"\\0"', "&b 2"]),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda parts: f"[{', '.join(parts)}]")
        | st.lists(st.tuples(st.sampled_from(["<<", "a", "seed", "1", "? x", "*a "]), inner), max_size=4).map(
            lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
        )
        | inner.map(lambda part: f"&a {part}")
    ),
    max_leaves=12,
)  # fmt: skip
sections = st.lists(st.tuples(st.sampled_from([*NAMES[:40], "x", "model", "hydra"]), nodes), min_size=1, max_size=4)


def check_structure(tmp_path_factory, pairs, overrides=()) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "spec.yaml"
    lines = [f"{name.replace('.', ': {')}: {node}{'}' * name.count('.')}\n" for name, node in pairs]
    path.write_text("".join(lines), encoding="utf-8")
    load_within_limits(path, overrides)


@given(sections)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_structures_of_yaml_become_a_spec_or_a_spec_error(tmp_path_factory, pairs):
    check_structure(tmp_path_factory, pairs)


grammar = st.text(alphabet="{}[]():,=+~@/.'\"\\$ \ta1-_*&!#%\0é", max_size=40)
arguments = st.one_of(
    st.builds("{}{}={}".format, st.sampled_from(["", "+", "++", "~"]), st.sampled_from(NAMES), grammar),
    st.builds("{}.{}={}".format, st.sampled_from(NAMES), grammar, grammar),
    st.builds("{}={}{}".format, st.sampled_from(LEAVES), st.sampled_from(["[", "{", "sort(", "glob("]), grammar),
    st.builds("{}={}".format, st.sampled_from(["hydra.run.dir", "_target_", "defaults", "+x@y", "a/b"]), grammar),
    st.builds("{}={}".format, st.sampled_from(NAMES), st.sampled_from(["1", "[1,2]", "{a: 1}", "null", "${x}"])),
    st.text(max_size=20),
)  # fmt: skip


@given(st.lists(arguments, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_overrides_become_a_spec_or_a_spec_error(overrides):
    load_within_limits(None, overrides)


@pytest.mark.slow
@given(sections, st.lists(arguments, max_size=3))
@settings(max_examples=3_000, deadline=None, suppress_health_check=list(HealthCheck))
def test_thousands_of_structures_with_overrides_become_a_spec_or_a_spec_error(tmp_path_factory, pairs, overrides):
    check_structure(tmp_path_factory, pairs, overrides)
