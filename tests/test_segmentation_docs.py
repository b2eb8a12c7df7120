"""The example in docs/segmentation.md runs, and its fields and variants exist."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from rtdetr_tool.catalog import RFDETR_VARIANTS
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec

PAGE = (Path(__file__).parents[1] / "docs" / "segmentation.md").read_text()


def test_the_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "docs/segmentation.md", "exec"), {})


def test_every_segmentation_variant_is_named():
    variants = {name for name, row in RFDETR_VARIANTS.items() if row.segmentation_head}
    assert variants == set(re.findall(r"\bseg_\w+", PAGE))


def test_the_table_names_the_fields_of_the_head_with_their_defaults():
    known = {entry.name: entry.default for entry in dataclasses.fields(RfdetrSpec)}
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| .*\(([\d, ]+)\) \|$", PAGE, re.MULTILINE)
    result = {}
    for names, values in rows:
        result |= dict(zip(re.findall(r"`(\w+)`", names), map(float, values.split(",")), strict=True))
    assert len(result) == 4 and result == {name: known[name] for name in result}
