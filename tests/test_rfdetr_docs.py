"""docs/rfdetr.md has the variants of the catalog, and its examples and fields are valid."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import yaml

from rtdetr_tool import cli
from rtdetr_tool.catalog import RFDETR_VARIANTS
from rtdetr_tool.spec import read_spec, spec_from_dict
from rtdetr_tool.spec.schema import field_names

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "rfdetr.md").read_text(encoding="utf-8")


def test_the_table_has_every_variant_as_the_catalog_has_it():
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| ([\d,]+) \| ([\d,]+) \| (\d+) x 91 \|.*/ (\d+) \|$", PAGE, re.MULTILINE)
    assert [row[0] for row in rows] == list(RFDETR_VARIANTS)
    for name, resolution, parameters, deployed, queries, unmatched in rows:
        variant = RFDETR_VARIANTS[name]
        assert (int(resolution), int(queries)) == (variant.resolution, variant.num_queries)
        assert int(parameters.replace(",", "")) == variant.parameters > int(deployed.replace(",", ""))
        assert unmatched == "0"


def test_the_example_is_a_spec_and_its_comment_names_every_variant_for_boxes():
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    spec = {**yaml.safe_load(text), "export": {"checkpoint": "a.pth", "onnx_file": "a.onnx"}}
    assert spec_from_dict(spec, "export").model.kind == "rfdetr-nano"
    more = {name for name, row in RFDETR_VARIANTS.items() if row.segmentation_head or row.use_grouppose_keypoints}
    boxes = RFDETR_VARIANTS.keys() - more
    assert boxes <= set(re.findall(r"\w+", text))


def test_commands_parse_and_named_fields_exist(monkeypatch):
    monkeypatch.chdir(ROOT)
    lines = [line for line in PAGE.splitlines() if line.startswith("rtdetr ")]
    assert len(lines) >= 2
    for line in lines:
        words = shlex.split(line)
        options = cli.build_command_parser(words[1]).parse_intermixed_args(words[2:])
        read_spec(options.experiment_spec_file, options.overrides, words[1])
    named = set(re.findall(r"`((?:model|train|dataset|export)\.[a-z_.]+)[`=]", PAGE))
    assert named and named - set(field_names()) - {"model.rfdetr", "model.arch"} == set()


def test_the_table_of_the_recipe_names_every_field():
    from rtdetr_tool.families.rfdetr.recipe import RECIPE

    table = PAGE.partition("## Training recipe")[2].partition("\n## ")[0]
    for field in RECIPE:
        assert f"{field.rpartition('.')[2]}`" in table, field
