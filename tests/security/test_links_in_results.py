"""A run only writes below its real results folder, whatever links it contains; and files of killed runs are removed."""

from __future__ import annotations

import os
import shutil
import time
from collections import namedtuple

import pytest
import safetensors.torch
import torch

from rtdetr_tool.cli import main
from rtdetr_tool.files import make_folder_below, remove_unfinished, replacing, replacing_with_companion


@pytest.fixture
def elsewhere(tmp_path):
    """A folder in which nothing may be written."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["labels", "images_annotated"])
@pytest.mark.parametrize("dangling", [False, True])
def test_inference_writes_through_no_planted_link(name, dangling, project, elsewhere, capsys):
    folder = project.folder / "results" / "inference"
    folder.mkdir(parents=True)
    (folder / name).symlink_to(elsewhere / "new" if dangling else elsewhere)
    assert project.run("inference", f"inference.checkpoint={project.checkpoint()}") == 2
    text = " ".join(capsys.readouterr().err.split())
    assert f"{name} is a link that points outside" in text and "Traceback" not in text


def test_nor_through_that_of_a_sequence(project, elsewhere, capsys):
    folder = project.folder / "results" / "inference"
    folder.mkdir(parents=True)
    (folder / project.folder.name).symlink_to(elsewhere)
    overrides = [f"inference.checkpoint={project.checkpoint()}", "inference.is_internal=true"]
    assert project.run("inference", *overrides) == 2
    assert "points outside" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["csv_logs", "lightning_logs", "csv_logs/version_0", "dataset_grids", "mlflow.db"])
def test_training_writes_through_no_planted_link(name, project, elsewhere, capsys):
    place = project.folder / "results" / "train" / name
    place.parent.mkdir(parents=True)
    place.symlink_to(elsewhere / "new" if name == "mlflow.db" else elsewhere)
    assert project.run("train", "train.is_dry_run=false", "train.num_epochs=1") == 2
    assert "points outside the results folder" in " ".join(capsys.readouterr().err.split())


def test_links_inside_of_the_results_folder_may_stay(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "results").symlink_to("disk")
    (tmp_path / "disk" / "a").mkdir()
    (tmp_path / "disk" / "b").symlink_to("a")
    make_folder_below(tmp_path / "results", tmp_path / "results" / "b" / "c")
    assert (tmp_path / "disk" / "a" / "c").is_dir()


# Files of killed programs


def killed_while_writing(path, folder=False):
    """The temporary file of a process that died inside of `replacing`."""
    pid = os.fork()
    if not pid:
        writing = (
            replacing_with_companion(path, lambda file: file.with_name(file.name + ".data"))
            if folder
            else replacing(path)
        )
        with writing as temporary:
            temporary.write_bytes(b"half")
            os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    (left,) = [file for file in path.parent.iterdir() if file.name.startswith(".")]
    old = time.time() - 10
    os.utime(left, (old, old))
    return left


@pytest.mark.parametrize("folder", [False, True])
def test_what_a_killed_program_left_is_removed_and_nothing_else(folder, tmp_path):
    path = tmp_path / "model.onnx"
    left = killed_while_writing(path, folder)
    others = [".model.original.onnx", ".other.unfinished_abcdefgh.onnx", ".model.unfinished_abc.onnx", "model.onnx"]
    for name in others:
        (tmp_path / name).write_text("mine")
        os.utime(tmp_path / name, (0, 0))
    remove_unfinished(path)
    assert not left.exists() and {file.name for file in tmp_path.iterdir()} == set(others)


def test_what_another_program_is_writing_stays(tmp_path):
    path = tmp_path / "model.onnx"
    with replacing(path) as temporary:
        os.utime(temporary, (0, 0))
        remove_unfinished(path)
        temporary.write_text("whole")
    assert path.read_text() == "whole"


def test_convert_removes_what_a_killed_convert_left(project):
    target = project.folder / "out" / "model.pth"
    target.parent.mkdir()
    left = killed_while_writing(target)
    assert main(["convert", str(project.checkpoint()), str(target)]) == 0
    assert not left.exists() and [file.name for file in target.parent.iterdir()] == ["model.pth"]


@pytest.mark.parametrize("name", ["out.pth", "out.safetensors", "transformers"])
def test_convert_on_a_full_disk_says_so(name, project, monkeypatch, capsys):
    source, target = project.checkpoint(), project.folder / name

    def full(*_, **__):
        raise RuntimeError("[enforce fail at inline_container.cc:778] . PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    assert main(["convert", str(source), str(target)]) == 1
    text = " ".join(capsys.readouterr().err.split())
    assert "the disk is full" in text and "MB are needed" in text and "Traceback" not in text
    assert not target.is_file()
