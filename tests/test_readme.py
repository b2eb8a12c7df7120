"""The commands and code in the README work as written."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rtdetr_tool import cli
from rtdetr_tool.spec import read_spec
from rtdetr_tool.spec.commands import WITH_SPEC

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[list[str]]:
    lines = [shlex.split(line, comments=True) for block in blocks("bash") for line in block.splitlines()]
    examples = [shlex.split(row.example) for row in cli.COMMANDS.values()]
    return [line for line in lines + examples if line and line[0] == program]


def test_the_readme_shows_both_ways():
    assert len(commands("rtdetr")) - len(cli.COMMANDS) >= 4
    assert len(commands("make")) >= 2
    assert len(blocks("python")) >= 2


@pytest.mark.parametrize("words", commands("rtdetr"), ids=" ".join)
def test_a_command_parses_and_its_spec_is_valid(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = cli.build_command_parser(words[1]).parse_intermixed_args(words[2:])
    if words[1] == "default_specs":
        assert options.arguments[0] in cli.COMMANDS
        return
    if words[1] not in WITH_SPEC and words[1] != "convert":
        return
    loaded = read_spec(options.experiment_spec_file, options.overrides, words[1])
    assert all(_lookup(loaded.explicit, text.split("=")[0]) is not None for text in options.overrides)


def _lookup(data, dotted: str):
    for name in dotted.split("."):
        data = data[name]
    return data


@pytest.mark.parametrize("words", commands("make"), ids=" ".join)
def test_a_make_target_exists(words):
    run = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("source", blocks("python"))
def test_a_python_block_compiles_and_its_imports_resolve(source):
    tree = ast.parse(source)
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert imported
    for node in imported:
        module = importlib.import_module(node.module)
        for alias in node.names:
            assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


def test_every_link_leads_to_a_file():
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.fixture
def small_demo(tmp_path, monkeypatch):
    """A working folder as after the first step of `make demo`, with a few small images."""
    script = [sys.executable, str(ROOT / "scripts" / "make_sample_dataset.py"), str(tmp_path / "demo" / "data")]
    subprocess.run([*script, "--train", "8", "--val", "4", "--test", "3", "--size", "96"], check=True)
    (tmp_path / "specs").symlink_to(ROOT / "specs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_readme_commands_train_and_draw_detections(small_demo, capsys):
    small = ["train.num_epochs=1", "train.checkpoint_interval=1", "train.validation_interval=1", "dataset.workers=0"]
    for words in [words for words in commands("rtdetr") if words[1] != "init"][:4]:
        extra = [] if words[1] == "default_specs" else small
        assert cli.main([*words[1:], *extra]) == 0, words
    assert (small_demo / "train.yaml").stat().st_size > 1000
    scores = json.loads((small_demo / "results" / "evaluate" / "results.json").read_text())
    assert 0 <= scores["mAP50"] <= 1 and scores["images"] == 4
    annotated = small_demo / "results" / "inference" / "images_annotated"
    assert len(list(annotated.glob("*.jpg"))) == 3
    assert len(list((small_demo / "results" / "inference" / "labels").glob("*.txt"))) == 3

    capsys.readouterr()
    for source in blocks("python"):
        if "street.jpg" in source:  # needs published weights; the same calls run in tests/api/test_python_api_docs.py
            continue
        exec(compile(source.replace('"train.num_epochs=20"', str(small)[1:-1]), "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert all(f"test_{number:05d}.jpg" in printed for number in range(3))
