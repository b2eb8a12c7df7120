"""`rtdetr default_specs`."""

from __future__ import annotations

import json
import stat

import pytest
import yaml

from rtdetr_tool import cli
from rtdetr_tool.spec.commands import WITH_SPEC
from rtdetr_tool.spec.default_spec import default_data, default_yaml
from rtdetr_tool.spec.json_schema import json_schema


@pytest.mark.parametrize("command", WITH_SPEC)
class TestFormats:
    def test_yaml_with_comments_is_printed(self, command, capsys):
        assert cli.main(["default_specs", command]) == 0
        text = capsys.readouterr().out
        assert text == default_yaml(command)
        assert yaml.safe_load(text) == default_data(command)
        assert text.startswith(f"# Default spec of `rtdetr {command}`")

    def test_json_is_printed(self, command, capsys):
        assert cli.main(["default_specs", command, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == default_data(command)

    def test_the_json_schema_is_printed(self, command, capsys):
        assert cli.main(["default_specs", command, "--schema"]) == 0
        schema = json.loads(capsys.readouterr().out)
        assert schema == json_schema(command)
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_specs_of_commands_with_a_checkpoint_have_no_model_section():
    for command in ("evaluate", "inference", "export", "quantize"):
        data = default_data(command)
        assert "model" not in data
        assert not {"num_classes", "class_ids", "augmentation"} & set(data.get("dataset", {}))


def test_a_file_is_written_with_its_folder(tmp_path, capsys):
    path = tmp_path / "new" / "train.yaml"
    assert cli.main(["default_specs", "train", "-o", str(path)]) == 0
    assert path.read_text() == default_yaml("train")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["train.yaml"]
    assert capsys.readouterr().out == ""


def test_a_file_with_edits_is_not_lost(tmp_path, capsys):
    path = tmp_path / "train.yaml"
    path.write_text("mine\n")
    assert cli.main(["default_specs", "train", "-o", str(path)]) == 2
    assert "exists; use --force to overwrite it" in capsys.readouterr().err
    assert path.read_text() == "mine\n"
    assert cli.main(["default_specs", "train", "-o", str(path), "--force"]) == 0
    assert path.read_text() == default_yaml("train")


def test_an_unwritable_output_is_reported(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["default_specs", "train", "-o", str(tmp_path / "file" / "x.yaml")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_an_unknown_command_is_refused_with_the_known_ones(capsys):
    assert cli.main(["default_specs", "trian"]) == 2
    assert "expected one of train, evaluate" in capsys.readouterr().err
