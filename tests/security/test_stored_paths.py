"""Paths in the metadata of a file are never opened, because its author would decide which files are read."""

from __future__ import annotations

from functools import reduce

import pytest
import torch

from rtdetr_tool.catalog import FOUNDATION_MODELS, FoundationModel
from rtdetr_tool.checkpoints.io import save_checkpoint
from rtdetr_tool.checkpoints.metadata import without_paths
from rtdetr_tool.checkpoints.spec_merge import complete_spec
from rtdetr_tool.families.rtdetr.model.radio import RadioViT
from rtdetr_tool.formats.description import describe
from rtdetr_tool.spec import read_spec, spec_from_dict, spec_to_dict
from rtdetr_tool.spec.queries import path_fields

OF_MODELS = sorted(path_fields("model", "read"))


def at(data: dict, name: str):
    return reduce(lambda section, key: section.get(key), name.split("."), data)


@pytest.fixture
def stored():
    """Metadata in which every path of the model names a file chosen by an attacker."""
    spec = spec_to_dict(spec_from_dict({}))
    for name in OF_MODELS:
        *sections, leaf = name.split(".")
        reduce(lambda section, key: section[key], sections, spec)[leaf] = "/etc/passwd"
    return {"spec": spec, "classes": []}


def test_the_spec_of_a_file_gives_no_path_and_the_users_paths_stay(stored):
    completed = spec_to_dict(complete_spec(read_spec(None), stored))
    assert OF_MODELS and [at(completed, name) for name in OF_MODELS] == [None] * len(OF_MODELS)
    own = read_spec(None, [f"{name}=/mine" for name in OF_MODELS])
    assert [at(spec_to_dict(complete_spec(own, stored)), name) for name in OF_MODELS] == ["/mine"] * len(OF_MODELS)


def test_a_deployed_file_names_no_path(stored):
    assert "/etc/passwd" not in str(describe(stored, (64, 64)))
    assert without_paths({"backbone": "resnet_18"}) == {"backbone": "resnet_18"}


@pytest.fixture
def with_radio(project, monkeypatch):
    """A checkpoint of the project trained with a small frozen RADIO, `secret.pth`, which is next to it."""
    monkeypatch.setitem(FOUNDATION_MODELS, "radio_v2-b", FoundationModel("radio_v2-b", 16, 1, 2, 0, "", ""))
    torch.save(RadioViT(16, 1, 2).state_dict(), project.folder / "secret.pth")
    plain = dict(project.spec["model"])
    frozen = {"enabled": True, "backbone": "radio_v2-b", "checkpoint": str(project.folder / "secret.pth")}
    project.spec["model"]["frozen_fm"] = frozen
    file = project.checkpoint()
    project.spec["model"] = plain
    project.write()
    return file


COMMANDS = {
    "evaluate": ["evaluate.checkpoint={}"],
    "export": [
        "export.checkpoint={}", "export.onnx_file={}.onnx", "export.on_cpu=true", "export.batch_size=1",
        "export.input_height=64", "export.input_width=64",
    ],
    "distill": [
        "distill.pretrained_teacher_model_path={}", "train.is_dry_run=true",
        "distill.bindings=[{teacher_module_name: srcs, student_module_name: srcs, criterion: L2}]",
    ],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_a_foundation_model_is_read_only_from_where_the_user_says(command, project, with_radio, capsys):
    given = [override.replace("{}", str(with_radio)) for override in COMMANDS[command]]
    assert project.run(command, *given) == 2
    field = "distill.teacher.frozen_fm.checkpoint" if command == "distill" else "model.frozen_fm.checkpoint"
    text = " ".join(capsys.readouterr().err.split())
    assert f"secret.pth, but paths in a checkpoint are never opened; set {field}." in text


def test_a_run_trained_with_a_foundation_model_is_scored_when_the_user_names_it(project, with_radio):
    own = f"model.frozen_fm.checkpoint={project.folder / 'secret.pth'}"
    assert project.run("evaluate", f"evaluate.checkpoint={with_radio}", own) == 0


def test_convert_reads_it_only_from_where_the_user_says_and_passes_no_other_path_on(project, with_radio, capsys):
    from rtdetr_tool.cli import main

    payload = torch.load(with_radio, weights_only=True)
    payload["rtdetr_tool"]["spec"]["model"]["pretrained_backbone_path"] = "/etc/passwd"
    save_checkpoint(payload, with_radio)
    target = project.folder / "copy.pth"
    assert main(["convert", str(with_radio), str(target)]) == 2
    assert "are never opened; set model.frozen_fm.checkpoint" in " ".join(capsys.readouterr().err.split())
    own = str(project.folder / "secret.pth")
    assert main(["convert", str(with_radio), str(target), f"model.frozen_fm.checkpoint={own}"]) == 0
    model = torch.load(target, weights_only=True)["rtdetr_tool"]["spec"]["model"]
    assert [at({"model": model}, name) for name in OF_MODELS] == [own, None]
