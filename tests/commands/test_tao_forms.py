"""What TAO's users type and write: its launcher's options, `default_specs` and the forms of its spec values."""

from __future__ import annotations

import itertools
import json

import pytest
import yaml

from rtdetr_tool import cli
from rtdetr_tool.data.coco import read_source
from rtdetr_tool.errors import DataError
from rtdetr_tool.spec import load_spec, read_spec
from rtdetr_tool.spec.commands import WITH_SPEC
from rtdetr_tool.spec.json_schema import json_schema
from rtdetr_tool.spec.schema import walk_fields

SOURCE = {"image_dir": "/images", "json_file": "/labels.json"}
DATA = {"train_data_sources": [SOURCE], "val_data_sources": SOURCE}


@pytest.fixture
def loaded(monkeypatch, tmp_path):
    """`loaded("train", "-g", "2", train={...})`: the spec with which a command line would run."""

    def load(command, *arguments, **sections):
        specs = []
        monkeypatch.setattr("rtdetr_tool.commands.session.run_session", lambda spec, *rest: specs.append(spec) or 0)
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump({"results_dir": "/results", "dataset": DATA, **sections}))
        code = cli.main([command, "-e", str(path), *arguments])
        return specs[0] if specs else code

    return load


@pytest.mark.parametrize("option", ["-g", "--gpus"])
def test_the_number_of_gpus_is_an_option(loaded, option):
    spec = loaded("train", option, "2").spec
    assert (spec.train.num_gpus, spec.train.gpu_ids) == (2, [0, 1])


@pytest.mark.parametrize(
    ("section", "ids"), [({"gpu_ids": [2, 3]}, [2, 3]), ({"num_gpus": 1, "gpu_ids": [0]}, [0, 1]), ({}, [0, 1])]
)
def test_the_gpus_of_the_spec_apply_if_there_are_as_many(loaded, section, ids):
    assert loaded("train", "-g", "2", train=section).spec.train.gpu_ids == ids


def test_gpus_given_twice_must_agree(loaded, capsys):
    assert loaded("train", "-g", "2", "train.gpu_ids=[3]") == 2
    assert "train.gpu_ids: [3] has 1 items; expected as many as train.num_gpus, which is 2" in capsys.readouterr().err


def test_a_command_on_one_device_takes_one_gpu(loaded, capsys):
    export = {"checkpoint": "a.pth", "onnx_file": "a.onnx"}
    assert loaded("export", "-g", "1", export=export).spec.export.gpu_id == 0
    assert loaded("export", "-g", "2", export=export) == 2
    assert "--gpus: 2 is not supported with `export`" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["-k", "--key"])
def test_the_key_is_accepted_and_has_no_effect(loaded, option):
    result = loaded("train", option, "nvidia=tlt 'x'")
    assert result.spec.encryption_key == "nvidia=tlt 'x'"
    assert result.notes == ["encryption_key has no effect: checkpoints are not encrypted"]


def test_default_specs_of_tao_writes_the_fields_of_all_commands(tmp_path, capsys):
    place = tmp_path / "new"
    assert cli.main(["default_specs", "module_name=rtdetr", f"results_dir={place}"]) == 0
    assert capsys.readouterr().out == f"Wrote {place / 'experiment.yaml'}\n"
    content = yaml.safe_load((place / "experiment.yaml").read_text())
    assert {row.name for row in WITH_SPEC.values()} <= content.keys()
    spec = load_spec(place / "experiment.yaml")
    assert spec.train.checkpointer.save_top_k == 1
    assert cli.main(["default_specs", f"results_dir={place}", "module_name=rtdetr"]) == 0  # replaced, as in TAO


@pytest.mark.parametrize(
    "arguments",
    [["module_name=rtdetr"], ["module_name=dino", "results_dir=x"], ["tarin"], ["train", "evaluate"], ["a=b"],
     ["module_name=rtdetr", "results_dir="]],
)  # fmt: skip
def test_other_arguments_of_default_specs_are_named(arguments, capsys):
    assert cli.main(["default_specs", *arguments]) == 2
    assert "is invalid; expected" in capsys.readouterr().err


def test_what_automl_may_vary_is_in_default_specs_schema_and_docs(capsys):
    varied = {name for name, entry, _ in walk_fields() if entry.metadata["automl"]}
    assert "train.optim.lr" in varied

    def in_schema(schema, prefix):
        for name, inner in schema.get("properties", {}).items():
            if inner.get("automl_enabled"):
                yield f"{prefix}{name}"
            yield from in_schema(inner, f"{prefix}{name}.")

    assert set(in_schema(json_schema("train"), "")) == {name for name in varied if not name.startswith("distill.")}
    assert cli.main(["default_specs", "train"]) == 0
    lines = capsys.readouterr().out.splitlines()
    above = {line.split(":")[0].strip(): before for before, line in itertools.pairwise(lines) if ":" in line}
    assert "(automl_enabled)" in above["lr_decay"]
    assert "AutoML" not in above["num_gpus"]


def test_an_engine_without_a_path_is_written_to_the_results(tmp_path):
    given = {"onnx_file": "/models/small.onnx", "trt_engine": None}
    (tmp_path / "spec.json").write_text(json.dumps({"results_dir": "/out", "gen_trt_engine": given}))
    loaded = read_spec(tmp_path / "spec.json", (), "gen_trt_engine")
    assert loaded.spec.gen_trt_engine.trt_engine == "/out/gen_trt_engine/small.engine"


def annotations(name: str) -> str:
    images = [{"id": 1, "file_name": name, "width": 8, "height": 8}]
    return json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]})


def test_json_file_may_be_a_folder_of_files(tmp_path):
    folder = tmp_path / "labels"
    folder.mkdir()
    with pytest.raises(DataError, match="has no annotation file"):
        read_source(str(tmp_path), str(folder))
    for number in (1, 2):
        text = annotations(f"{number}.png").replace('"id": 1, "file', f'"id": {number}, "file')
        (folder / f"{number}.json").write_text(text)
    assert list(read_source(str(tmp_path), str(folder)).images) == [1, 2]


def test_frames_of_hdf5_files_are_refused_with_the_reason(tmp_path):
    (tmp_path / "labels.json").write_text(annotations("h5://drive_01:000123.png"))
    with pytest.raises(DataError, match=r"frame of an HDF5 file, 'h5://drive_01:000123.png'.*Extract them"):
        read_source(str(tmp_path), str(tmp_path / "labels.json"))
