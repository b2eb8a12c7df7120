"""docs/training.md and the example spec of RF-DETR are valid."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from rtdetr_tool.spec import read_spec, spec_from_dict
from rtdetr_tool.spec.schema import field_names

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


def test_the_recipes_on_the_page_are_specs():
    rfdetr, deim = (
        spec_from_dict(yaml.safe_load(recipe)) for recipe in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    )
    assert (rfdetr.model.arch, rfdetr.train.ema.tau, rfdetr.train.optim.lr_layer_decay) == ("rfdetr", 100, 0.8)
    assert (deim.model.loss_types, deim.train.optim.lr_scheduler) == (["mal", "boxes"], "FlatCosine")


def test_every_field_the_page_names_exists():
    named = set(re.findall(r"`((?:train|model|dataset)\.[a-z_.]+)", TEXT))
    assert len(named) > 15 and named <= set(field_names())


def test_the_example_trains_either_family_by_one_line():
    path = ROOT / "specs" / "rfdetr_demo.yaml"
    loaded = read_spec(path, [], "train")
    assert loaded.spec.model.arch == "rfdetr"
    assert read_spec(path, ["model.arch=rtdetr"], "train").spec.model.backbone == "resnet_18d"
