"""A spec with every field of TAO 7.3, through train, evaluate, inference, export and gen_trt_engine.

The fields and their defaults are those of its schema; paths are added, and the network and the run are made small.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

SCHEMA = Path(__file__).parents[1] / "spec" / "tao_schemas" / "7.3.0.json"
SMALL = {
    "backbone": "resnet_18", "hidden_dim": 32, "nheads": 4, "feat_channels": [32] * 3, "dim_feedforward": 32,
    "num_queries": 8, "num_select": 8, "dec_layers": 1, "dn_number": 4,
}  # fmt: skip
WITHOUT_DEFAULT = ("distill", "quantize")  # sections whose commands do not run here


def every_field() -> dict[str, Any]:
    """The spec of TAO 7.3 with its defaults, without fields that have none (`???`)."""
    data: dict[str, Any] = {}
    for name, facts in json.loads(SCHEMA.read_text(encoding="utf-8")).items():
        *sections, leaf = name.split(".")
        if name.split(".")[0] in WITHOUT_DEFAULT or "[]" in name or facts["default"] == "???":
            continue
        place = data
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = facts["default"]
    return data


@pytest.fixture
def tao(project):
    """`project` with the spec of TAO 7.3 and the checkpoints that its training will write."""
    spec, results = every_field(), project.folder / "results"
    sources = {name: source for name, source in project.spec["dataset"].items() if name.endswith("_sources")}
    spec["dataset"] |= {**sources, "num_classes": 2, "batch_size": 3, "workers": 1}
    spec["dataset"]["augmentation"] = project.spec["dataset"]["augmentation"]
    spec["model"] |= SMALL
    spec["train"] |= {"num_epochs": 2}
    spec["train"]["checkpointer"] |= {"enable_topk": True, "monitor": "val_loss", "replace_periodic": True}
    spec["wandb"] |= {"enable": False, "group": "tao"}
    for section in ("evaluate", "inference", "export"):
        spec[section]["checkpoint"] = str(results / "train" / "rtdetr_model_latest.pth")
    spec["export"] |= {"onnx_file": str(project.folder / "model.onnx"), "input_width": 64, "input_height": 64}
    spec["gen_trt_engine"] |= {"onnx_file": str(project.folder / "model.onnx"), "trt_engine": None}
    project.spec = spec
    project.write()
    return project


def run(tao, command: str, *overrides: str) -> Path:
    from rtdetr_tool.cli import main

    results = tao.folder / "results"
    assert main([command, "-e", str(tao.spec_file), "-r", str(results), "-k", "key", *overrides]) == 0
    return results / command


@pytest.mark.slow
def test_a_spec_with_every_field_of_tao_73_runs_from_training_to_an_engine(tao):
    train = run(tao, "train", "--gpus", "1")
    best = [file.name for file in train.glob("model_best_*.pth")]
    assert len(best) == 1 and not list(train.glob("model_epoch_*.pth"))
    assert (train / "rtdetr_model_latest.pth").resolve().name == best[0]
    assert "mAP" in json.loads((run(tao, "evaluate") / "results.json").read_text())
    assert len(list((run(tao, "inference") / "labels").iterdir())) == 6
    run(tao, "export")
    assert (tao.folder / "model.onnx").is_file()
    if importlib.util.find_spec("tensorrt_rtx") is None:
        assert (run(tao, "gen_trt_engine", "gen_trt_engine.backend=none") / "precision.json").is_file()
    else:
        folder = run(tao, "gen_trt_engine", "gen_trt_engine.compute_capability=[SM89]")
        assert (folder / "model.engine").stat().st_size > 10**6
