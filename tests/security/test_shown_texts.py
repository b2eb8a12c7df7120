"""Untrusted names of files and classes are printed without any control sequences for the terminal."""

from __future__ import annotations

import json

import pytest
import torch

from rtdetr_tool.checkpoints.io import save_checkpoint

FILE, CLASS = "\x1b[2J\x1b[31m1.png", "[bold]x[/bold][/red]\x1b[2J"


@pytest.fixture
def hostile(project):
    """The project with such names for an image, a class, and a file that is not an image."""
    project.coco["images"][0]["file_name"] = FILE
    project.image(1).rename(project.folder / "images" / FILE)
    (project.folder / "images" / "\x1b[2Jbroken.png").write_bytes(b"none")
    project.coco["categories"][0]["name"] = CLASS
    project.coco["annotations"][0]["bbox"] = [8, 8, 500, 20]  # it is repaired, and the image is named in the message
    project.write()
    return project


@pytest.fixture
def weights(hostile):
    file = hostile.checkpoint(lively=True)
    payload = torch.load(file, weights_only=True)
    payload["rtdetr_tool"]["classes"][0]["name"] = CLASS
    save_checkpoint(payload, file)
    return file


def shown(project, command: str, text: str) -> None:
    """Console, log and status of the command have no escape sequences; `text` is in the first two."""
    folder = project.folder / "results" / command
    log, status = (folder / "log.txt").read_text(), (folder / "status.json").read_text()
    for where in (text, log, status):
        assert "\x1b" not in where and "Traceback" not in where
    assert all(json.loads(line) for line in status.splitlines())


@pytest.mark.parametrize(("command", "code"), [("validate_data", 0), ("train", 0), ("evaluate", 0), ("inference", 2)])
def test_no_name_reaches_a_terminal_as_a_command(command, code, hostile, weights, capsys):
    given = [f"{command}.checkpoint={weights}"] if command in ("evaluate", "inference") else []
    assert hostile.run(command, *given) == code
    text = capsys.readouterr().err
    shown(hostile, command, text)
    if command in ("validate_data", "evaluate"):  # which show the classes
        assert r"[bold]x[/bold][/red]\x1b[2J" in text
    if command in ("inference", "train"):
        assert r"\x1b[2J" in text


@pytest.mark.parametrize("value", ["\x1b[2J", "[/red]"])
def test_values_of_a_spec_are_shown_as_they_are(value, project, capsys):
    project.spec["model"]["backbone"] = value
    project.write()
    assert project.run("train") == 2
    text = capsys.readouterr().err
    assert "\x1b" not in text and value.replace("\x1b", r"\x1b") in text
    assert project.run("evaluate", f"evaluate.checkpoint={value}.pth") == 2
    assert "\x1b" not in capsys.readouterr().err
