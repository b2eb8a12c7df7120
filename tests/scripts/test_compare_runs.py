"""The scripts that compare training runs: their specs are valid, and their tables are correct."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from rtdetr_tool.spec import spec_from_dict

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


def test_each_part_of_deim_changes_only_its_own_fields(script, tmp_path):
    compare = script("compare_deim")
    options = compare.parse([str(tmp_path)])
    specs = {name: spec_from_dict(compare.spec_of(options, tmp_path, name, 1)) for name in compare.VARIANTS}
    values = {
        name: (spec.model.loss_types, spec.dataset.augmentation.mixup_prob, spec.train.optim.lr_scheduler)
        for name, spec in specs.items()
    }
    plain, losses, scheduler = values["plain"], ["mal", "boxes"], "FlatCosine"
    assert plain[1:] == (0.0, "MultiStep")
    assert values["loss"] == (losses, *plain[1:])
    assert values["dense"] == (plain[0], 0.5, plain[2])
    assert values["schedule"] == (*plain[:2], scheduler)
    assert values["deim"] == (losses, 0.5, scheduler)
    assert {spec.dataset.augmentation.no_aug_epochs for spec in specs.values()} == {2}


def test_the_table_has_the_first_epoch_at_each_goal(script):
    compare = script("compare_deim")
    curves = {"plain": [{1: 0.1, 2: 0.4}, {1: 0.3, 2: 0.2}], "deim": [{1: 0.0, 2: 0.1}, {1: 0.2, 2: 0.5}]}
    lines = compare.text_of(curves, None).splitlines()
    assert "epochs to 0.150 | epochs to 0.300" in lines[0]  # half and all of the mean of 0.4 and 0.2
    assert lines[2] == "| none of them | 0.300 ± 0.141 | 0.400, 0.200 | 0.350 ± 0.071 | 2, 1 | 2, 1 |"
    assert lines[3].endswith("| -, 1 | -, 2 |")


def test_all_detectors_train_alike(script, tmp_path):
    compare = script("compare_families")
    options = compare.parse([str(tmp_path), "--epochs", "6", "--size", "128"])
    specs = {name: spec_from_dict(compare.spec_of(options, tmp_path, name, 2)) for name in compare.DETECTORS}
    dfine = specs["dfine"]
    assert {name: spec.model.arch for name, spec in specs.items()} == {
        "dfine": "dfine", "rtdetr_b0": "rtdetr", "rtdetr": "rtdetr"
    }  # fmt: skip
    for spec in specs.values():
        assert spec.dataset == dfine.dataset and spec.train.optim == dfine.train.optim
        assert spec.train.clip_grad_norm == dfine.train.clip_grad_norm and spec.train.ema == dfine.train.ema
    assert (dfine.train.seed, dfine.train.num_epochs, dfine.train.optim.lr_steps) == (2, 6, [5])
    assert dfine.dataset.augmentation.train_spatial_size == [128, 128]
    lengths = [compare.parse([str(tmp_path), "--epochs", length]) for length in ("5", "6")]
    intervals = [compare.spec_of(options, tmp_path, "dfine", 1)["train"]["validation_interval"] for options in lengths]
    assert intervals == [5, 3]  # with the last epoch


def test_the_table_states_the_cost_of_each_detector(script, tmp_path):
    compare = script("compare_families")
    options = compare.parse([str(tmp_path)])
    work = {name: compare.work_of(compare.spec_of(options, tmp_path, name, 1), 64) for name in compare.DETECTORS}
    assert work["rtdetr"] > 1.5 * work["dfine"] and work["rtdetr_b0"] == pytest.approx(work["dfine"], rel=0.3)
    row = {"seconds": {"processor": 90.0}, "gflops": 0.5}
    rows = [{**row, "mAP": {2: 0.1}, "mAP50": {2: 0.2}}, {**row, "mAP": {2: 0.3}, "mAP50": {2: 0.2}}]
    lines = compare.text_of({"dfine": rows, "rtdetr": []}).splitlines()
    assert lines[2] == "| D-FINE, HGNetV2 B0 | 2 | 0.200 ± 0.141 | 0.100, 0.300 | 0.200 ± 0.000 | 90 | 0.50 |"


def test_specs_of_searches_and_supernets_are_valid(script, tmp_path):
    search, supernet = script("compare_search"), script("compare_supernet")
    options = search.parse([str(tmp_path)])
    assert spec_from_dict(search.spec_of(options, 3, 5, "tpe", "asha")).train.optim.lr_steps == [4]
    options = supernet.parse([str(tmp_path)])
    spec = spec_from_dict(supernet.spec_of(options, 64, 2, 15, {"enabled": True, "resolution": [96]}))
    assert (spec.model.dec_layers, spec.model.num_queries, spec.train.supernet.enabled) == (2, 15, True)
