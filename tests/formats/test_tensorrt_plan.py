"""Engine files: the plan and its description are complete and belong together."""

from __future__ import annotations

import json

import pytest

from rtdetr_tool.errors import CheckpointError, UserError
from rtdetr_tool.formats.tensorrt.plan import (
    description_path,
    looks_like_plan,
    plan_version,
    read_engine_file,
    write_engine_file,
)

# The header of a TensorRT-RTX 1.7.1.116 engine: kind, sizes, version.
PLAN = b"vtrt" + bytes(12) + (1000).to_bytes(8, "little") + bytes([1, 7, 1, 116]) + bytes(972)
DESCRIPTION = {"names": {"0": "Möwe"}, "build": {"backend": "tensorrt_rtx"}}


def test_written_files_are_read_back(tmp_path):
    path = tmp_path / "new folder" / "model.engine"
    write_engine_file(path, PLAN, DESCRIPTION)
    plan, description = read_engine_file(path)
    assert plan == PLAN
    assert description["names"] == {"0": "Möwe"} and description["build"] == {"backend": "tensorrt_rtx"}
    assert description["engine"]["bytes"] == 1000 and description["engine"]["file"] == "model.engine"
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.engine", "model.engine.json"]


def test_an_engine_of_another_tool_has_no_description(tmp_path):
    path = tmp_path / "model.plan"
    path.write_bytes(PLAN)
    assert read_engine_file(path) == (PLAN, {})


def test_a_description_that_cannot_be_written_as_json_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        write_engine_file(tmp_path / "model.engine", PLAN, {"names": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_no_files(tmp_path):
    folder = tmp_path / "model.engine"
    folder.mkdir()
    with pytest.raises(UserError, match="it is a directory"):
        write_engine_file(folder, PLAN, {})
    with pytest.raises(UserError, match=r"model\.engine/inner/x\.engine cannot be written"):
        (folder / "inner").write_text("a file")
        write_engine_file(folder / "inner" / "x.engine", PLAN, {})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.engine"]


def test_a_failed_write_keeps_the_previous_engine_and_description(tmp_path):
    path = tmp_path / "model.engine"
    write_engine_file(path, PLAN, DESCRIPTION)
    with pytest.raises(TypeError):
        write_engine_file(path, b"other", {"names": object()})
    assert read_engine_file(path)[0] == PLAN


def test_a_truncated_engine_is_reported(tmp_path):
    path = tmp_path / "model.engine"
    write_engine_file(path, PLAN, DESCRIPTION)
    path.write_bytes(PLAN[:600])
    with pytest.raises(CheckpointError, match="truncated: 600 of 1000 bytes"):
        read_engine_file(path)


def test_a_description_of_another_engine_is_reported(tmp_path):
    write_engine_file(tmp_path / "one.engine", PLAN, DESCRIPTION)
    write_engine_file(tmp_path / "two.engine", PLAN[:-1] + b"x", DESCRIPTION)
    description_path(tmp_path / "two.engine").replace(description_path(tmp_path / "one.engine"))
    with pytest.raises(CheckpointError, match=r"one\.engine\.json belongs to another engine"):
        read_engine_file(tmp_path / "one.engine")


@pytest.mark.parametrize("text", ["{", "[1]", '"engine"'])
def test_a_corrupted_description_is_reported(tmp_path, text):
    path = tmp_path / "model.engine"
    path.write_bytes(PLAN)
    description_path(path).write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.engine\.json .*Replace or delete it"):
        read_engine_file(path)


def test_missing_empty_and_directory_have_different_messages(tmp_path):
    (tmp_path / "other.engine").write_bytes(PLAN)
    (tmp_path / "empty.engine").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"There is no TensorRT engine at .*contains empty\.engine, other\.engine"
    ):
        read_engine_file(tmp_path / "model.engine")
    with pytest.raises(CheckpointError, match="is empty"):
        read_engine_file(tmp_path / "empty.engine")
    with pytest.raises(CheckpointError, match="is a directory"):
        read_engine_file(tmp_path)


def test_the_header_has_the_version_that_built_a_plan():
    assert looks_like_plan(PLAN) and plan_version(PLAN) == "1.7.1.116"
    for foreign in (b"", b"vtrt", b"PK\x03\x04" + bytes(100), b"vtrt" + bytes(100)):
        assert plan_version(foreign) is None


def test_the_description_is_readable_json(tmp_path):
    write_engine_file(tmp_path / "model.engine", PLAN, DESCRIPTION)
    text = description_path(tmp_path / "model.engine").read_text(encoding="utf-8")
    assert "Möwe" in text and json.loads(text)["engine"]["built"].endswith("+00:00")
