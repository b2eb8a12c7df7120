"""The commands in docs/tflite.md parse, its fields exist, and its extra is declared."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from rtdetr_tool import cli
from rtdetr_tool.spec import read_spec
from rtdetr_tool.spec.schema import walk_fields

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "tflite.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()]


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("rtdetr ")])
def test_a_command_parses_and_its_spec_is_valid(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(line)
    options = cli.build_command_parser(words[1]).parse_intermixed_args(words[2:])
    read_spec(options.experiment_spec_file, options.overrides, words[1])


def test_the_extra_is_the_one_that_the_package_declares():
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert 'pip install "rtdetr-tool[tflite]"' in LINES
    assert {re.split("[<>=]", row)[0] for row in extras["tflite"]} == {
        "litert-torch", "ai-edge-quantizer", "ai-edge-litert"
    }  # fmt: skip


def test_every_field_named_exists():
    known = {name for name, _, _ in walk_fields()}
    named = set(re.findall(r"`(export\.[a-z_.]+)", TEXT))
    assert named - known == {"export.json"}
