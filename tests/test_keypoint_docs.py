"""The fields and numbers in docs/keypoints.md exist."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from rtdetr_tool.catalog import LAYOUTS
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec
from rtdetr_tool.spec.metric_names import SCORES

PAGE = (Path(__file__).parents[1] / "docs" / "keypoints.md").read_text()


def test_the_table_names_the_fields_of_the_head_with_their_defaults():
    known = {entry.name: entry.default for entry in dataclasses.fields(RfdetrSpec)}
    table = PAGE.split("| field of")[1].split("## Data")[0]
    named = {name for row in re.findall(r"^\| (`.*`) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    expected = {name for name in known if "keypoint" in name or "kp_" in name or "dual_" in name}
    assert named == expected - {"use_grouppose_keypoints"} | {"postprocess_trace_alpha"}
    assert {known[name] for name in named if name.endswith("_coef")} == {1.0}


def test_scores_and_outputs_have_these_names():
    assert all(f"`val/{name}`" in PAGE for name in SCORES["keypoints"])
    assert all(f"`{layout.outputs['keypoints']}`" in PAGE for layout in LAYOUTS.values())
