"""Default specs, JSON Schema and the reference page."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from functools import cache
from pathlib import Path

import jsonschema
import pytest
import yaml

from rtdetr_tool.spec import MISSING, ExperimentSpec, load_spec, read_spec, spec_to_dict
from rtdetr_tool.spec.commands import WITH_SPEC
from rtdetr_tool.spec.default_spec import comment_of, default_data, default_yaml
from rtdetr_tool.spec.documents import read_file
from rtdetr_tool.spec.json_schema import json_schema
from rtdetr_tool.spec.reference_page import reference_page, unused_fields
from rtdetr_tool.spec.schema import walk_fields

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "specs").glob("*.yaml"))


@cache
def validator(command: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json_schema(command))


def filled(data, name=""):
    """Plain data with a distinct path for each `???`."""
    if isinstance(data, dict):
        return {key: ["/a"] if key == "cal_image_dir" else filled(value, key) for key, value in data.items()}
    if isinstance(data, list):
        return [filled(value, name) for value in data]
    return f"/some/{name}" if data == MISSING else data


@pytest.mark.parametrize("command", WITH_SPEC)
class TestDefaults:
    def test_the_yaml_holds_the_same_values_as_the_json(self, command):
        assert yaml.safe_load(default_yaml(command)) == default_data(command)

    def test_once_paths_are_filled_in_it_loads_with_nothing_but_defaults(self, command, tmp_path):
        path = tmp_path / "spec.yaml"
        text = default_yaml(command).replace("cal_image_dir: ???", "cal_image_dir: [/a]")
        counter = itertools.count()
        path.write_text(re.sub(r"\?\?\?", lambda gap: f"/some/path{next(counter)}", text))
        loaded = read_spec(path, command=command)
        assert not [note for note in loaded.notes if command != "distill"]
        given = spec_to_dict(loaded.spec)
        for name in set(WITH_SPEC[command].sections) - {"dataset", "results_dir", command}:
            assert given[name] == spec_to_dict(ExperimentSpec())[name]

    def test_before_that_every_gap_is_named(self, command, tmp_path):
        path = tmp_path / "spec.yaml"
        path.write_text(default_yaml(command))
        with pytest.raises(Exception, match="but not set") as caught:
            load_spec(path, command=command)
        needed = [row for row in WITH_SPEC[command].requires if row.unless != ("benchmark.score", False)]
        assert len(caught.value.problems) == len(needed)

    def test_every_field_is_explained_above_its_value(self, command):
        lines = default_yaml(command).splitlines()
        for above, line in itertools.pairwise(lines):
            if line and not line.lstrip().startswith("#"):
                assert above.lstrip().startswith("# "), line

    def test_the_schema_accepts_it_and_what_the_loader_makes_of_it(self, command, tmp_path):
        validator(command).validate(filled(default_data(command)))
        path = tmp_path / "spec.json"
        path.write_text(json.dumps(filled(default_data(command))))
        validator(command).validate(spec_to_dict(load_spec(path, command=command)))


def test_the_schema_is_valid_itself():
    jsonschema.Draft202012Validator.check_schema(json_schema("train"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_specs_load_and_fit_the_schema(path):
    validator("train").validate(read_file(path))
    missing = [key for key, value in read_file(path)["dataset"].items() if value == MISSING]
    gaps = [f"dataset.{key}={'/a' if key == 'dataset_dir' else '{image_dir: /a, json_file: /b}'}" for key in missing]
    other_arch = " has no effect: model.arch "  # the note in the file for a change of one line
    assert not [note for note in read_spec(path, gaps, "train").notes if other_arch not in note]


def test_there_are_shipped_specs():
    assert {"demo.yaml", "bccd_resnet18.yaml"} <= {path.name for path in SHIPPED}


@pytest.mark.parametrize(
    "change",
    [
        {"trian": {}},
        {"train": {"num_epoch": 3}},
        {"train": {"num_epochs": 0}},
        {"train": {"num_epochs": "ten"}},
        {"train": {"num_epochs": None}},
        {"train": {"precision": "fp64"}},
        {"train": {"optim": {"lr": 0}}},
        {"train": {"gpu_ids": 0}},
        {"train": {"gpu_ids": [-1]}},
        {"train": {"enable_ema": "perhaps"}},
        {"model": {"backbone": "resnet50"}},
        {"model": {"loss_types": ["vfl", "focal"]}},
        {"dataset": {"augmentation": {"iou_crop_prob": 1.5}}},
        {"dataset": {"val_data_sources": {"image_dir": "a", "json_files": "b"}}},
        {"distill": {"bindings": [{"criterion": "L3"}]}},
        {"quantize": {"layers": [{"module_name": "a", "weights": {"dtype": "int3"}}]}},
    ],
    ids=json.dumps,
)
def test_the_schema_and_the_loader_refuse_the_same_wrong_specs(change, tmp_path):
    data = filled(default_data("train"))
    for section, values in change.items():
        data[section] = {**data.get(section, {}), **values}
    with pytest.raises(jsonschema.ValidationError):
        validator("train").validate(data)
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(data))
    with pytest.raises(Exception, match="problem"):
        load_spec(path, command="train")


def test_the_schema_of_a_command_asks_for_what_the_command_needs():
    for command, row in WITH_SPEC.items():
        with pytest.raises(jsonschema.ValidationError):
            validator(command).validate({})
        assert len(json_schema(command)["allOf"]) == len(row.requires)


@pytest.mark.parametrize(
    ("command", "data"),
    [
        ("gen_trt_engine", {"gen_trt_engine": {"onnx_file": "a.onnx", "backend": "none"}}),
        ("automl", {"automl": {"supernet_checkpoint": "a.pth"},
                    "dataset": {"val_data_sources": {"dataset_dir": "b", "split": "val"}}}),
    ],
)  # fmt: skip
def test_the_schema_and_the_loader_accept_what_another_field_makes_unnecessary(command, data, tmp_path):
    data["results_dir"] = str(tmp_path)
    validator(command).validate(data)
    (tmp_path / "spec.json").write_text(json.dumps(data))
    load_spec(tmp_path / "spec.json", command=command)
    section = data[command]
    del section["backend" if command == "gen_trt_engine" else "supernet_checkpoint"]
    (tmp_path / "spec.json").write_text(json.dumps(data))
    with pytest.raises(jsonschema.ValidationError):
        validator(command).validate(data)
    with pytest.raises(Exception, match="required by"):
        load_spec(tmp_path / "spec.json", command=command)


def test_scores_of_a_benchmark_require_a_test_set(tmp_path):
    data = {"results_dir": str(tmp_path), "benchmark": {"checkpoint": "a.pth"}}
    path = tmp_path / "spec.json"
    for score, valid in ((None, True), (False, True), (True, False)):
        if score is not None:
            data["benchmark"]["score"] = score
        path.write_text(json.dumps(data))
        assert validator("benchmark").is_valid(data) == valid
        if valid:
            load_spec(path, command="benchmark")
    with pytest.raises(Exception, match="dataset_dir: required by `benchmark`, but not set"):
        load_spec(path, command="benchmark")


def test_a_comment_says_options_bounds_and_unit():
    comments = {name: comment_of(entry) for name, entry, _ in walk_fields()}
    assert comments["train.precision"].endswith("One of: bf16, fp32, fp16, auto.")
    assert comments["model.num_feature_levels"].endswith("Allowed: from 1 to 4.")
    assert comments["train.optim.lr"].endswith("Allowed: above 0. AutoML may vary it (automl_enabled).")
    assert comments["gen_trt_engine.tensorrt.workspace_size"].endswith("Unit: MB.")


def test_every_field_has_a_help_of_its_own_words_that_ends_as_a_sentence():
    for name, entry, _ in walk_fields():
        assert entry.metadata["help"].endswith("."), name
        assert "\n" not in entry.metadata["help"], name
        assert "|" not in entry.metadata["help"], f"{name}: would break the reference's table"


class TestReference:
    def test_the_page_in_docs_is_current(self):
        assert (ROOT / "docs" / "spec.md").read_text(encoding="utf-8") == reference_page(), (
            "run: python scripts/generate_spec_reference.py"
        )

    def test_it_has_every_field_in_its_section(self):
        page = reference_page()
        for name, entry, _ in walk_fields():
            section, _, leaf = name.rpartition(".")
            if name.startswith("distill.teacher."):
                continue
            if dataclasses.is_dataclass(entry.default_factory):
                assert f"## `{name}`" in page
            else:
                part = page.split(f"## {f'`{section}`' if section else 'Top level'}\n")[1].split("\n## ")[0]
                assert f"\n| `{leaf}` | " in part, name

    def test_it_names_the_fields_without_effect(self):
        page = reference_page()
        assert all(f"| `{name}` | {reason} |" in page for name, reason in unused_fields().items())


@pytest.mark.parametrize("row", WITH_SPEC.values(), ids=lambda row: row.name)
def test_the_commands_table_names_only_fields_that_exist(row):
    known = {name for name, _, _ in walk_fields()}
    conditions = {needed.unless[0] for needed in row.requires if needed.unless}
    assert {*row.sections, row.name, *conditions, *(name for needed in row.requires for name in needed.fields)} <= known


def test_declarations_name_only_commands_that_exist():
    assert {name for _, entry, _ in walk_fields() for name in entry.metadata["commands"]} <= WITH_SPEC.keys()
