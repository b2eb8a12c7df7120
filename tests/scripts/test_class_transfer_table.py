"""The table of class orders: its datasets differ only in the numbering of classes, and its specs are valid."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from rtdetr_tool.spec import spec_from_dict

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return importlib.import_module("class_transfer_table")


@pytest.mark.parametrize(("order", "left"), [("reversed", [1, 5]), ("one more", [1, 5]), ("one fewer", [5])])
def test_objects_keep_their_class_by_name(table, order, left):
    old = [{"id": index, "name": name} for index, name in enumerate(table.CLASSES, 1)]
    objects = [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 5}]
    content = {"categories": old, "images": [], "annotations": objects}
    made = table.numbered(content, table.ORDERS[order])
    names = {category["id"]: category["name"] for category in made["categories"]}
    assert list(names.values()) == list(table.ORDERS[order]) and list(names) == list(range(1, len(names) + 1))
    assert [names[a["category_id"]] for a in made["annotations"]] == [table.CLASSES[i - 1] for i in left]


@pytest.mark.parametrize("family", ["RT-DETR", "RF-DETR"])
def test_its_specs_are_valid(table, family, tmp_path):
    data = table.settings(family, tmp_path, tmp_path / "out", 1, 1e-9)
    assert spec_from_dict(data, "train").train.optim.lr == 1e-9
