"""The examples in docs/datasets.md and the spec for a dataset folder are valid."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from rtdetr_tool import cli
from rtdetr_tool.data.build import build_eval_dataset, build_train_dataset
from rtdetr_tool.data.dataset_folder import FORMATS
from rtdetr_tool.spec import load_spec, read_spec, spec_from_dict

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
SPEC = ROOT / "specs" / "roboflow_folder.yaml"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("block", blocks("yaml"))
def test_a_section_is_valid(block) -> None:
    spec_from_dict({**yaml.safe_load(block), "results_dir": "results"}, "train")


def test_the_override_for_another_split_is_valid() -> None:
    (override,) = re.findall(r"`(dataset\.test_data_sources=.*?)`", TEXT)
    spec = load_spec(None, [override])
    assert spec.dataset.test_data_sources == {"dataset_dir": "data/helmets", "split": "val"}


def test_every_format_is_described() -> None:
    assert set(re.findall(r"^\| `(\w+)` \| `", TEXT, flags=re.MULTILINE)) == set(FORMATS)


def test_the_commands_draw_convert_and_read_the_sample_data(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    draw, convert, train = (shlex.split(line) for line in blocks("bash")[0].splitlines())
    assert script("make_sample_dataset").main([*draw[2:], "--train=2", "--val=2", "--test=1", "--size=64"]) == 0
    assert script("convert_dataset").main(convert[2:]) == 0
    options = cli.build_command_parser("train").parse_intermixed_args(train[2:])
    loaded = read_spec(SPEC, options.overrides, "train")
    dataset = build_train_dataset(loaded.spec.dataset)
    assert dataset.class_map.names == ["disc", "square", "triangle", "star", "ring"]
    assert [len(build_eval_dataset(loaded.spec.dataset, split)) for split in ("val", "test")] == [2, 1]
    with pytest.raises(SystemExit):
        script("convert_dataset").main(convert[2:])
    assert "already exists" in capsys.readouterr().err
