"""Runs of the command line on a GPU. `GPU_TESTS_DEVICE=cpu` checks the tests themselves on a machine without one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import draw_dataset

ACCELERATOR = os.environ.get("GPU_TESTS_DEVICE", "gpu")
TINY = {
    "rtdetr": {
        "backbone": "resnet_18", "hidden_dim": 32, "nheads": 4, "dim_feedforward": 32, "feat_channels": [32, 32, 32],
        "num_queries": 12, "num_select": 12, "dec_layers": 2, "dn_number": 4,
    },
    "rfdetr": {"arch": "rfdetr", "rfdetr": {"variant": "nano", "num_queries": 12}, "num_select": 12},
}  # fmt: skip

Run = Callable[..., int]


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("gpu")
    train, val = draw_dataset(root / "train", 20, 1), draw_dataset(root / "val", 4, 2)
    (root / "classes.txt").write_text("red\ngreen\n")
    return {
        "train_data_sources": [train],
        "val_data_sources": val,
        "test_data_sources": val,
        "infer_data_sources": {"image_dir": val["image_dir"], "classmap": str(root / "classes.txt")},
        "num_classes": 3,
        "batch_size": 2,
        "workers": 2,
        "augmentation": {"multi_scales": [], "train_spatial_size": [64, 64], "eval_spatial_size": [64, 64]},
    }


@pytest.fixture
def run(data, tmp_path) -> Run:
    """`run("train", family, train={...})`: the exit code of a command in `tmp_path`; ten steps per epoch."""

    def start(command: str, family: str, folder: Path = tmp_path, **sections: dict[str, Any]) -> int:
        from rtdetr_tool.cli import main

        dataset = {**data, **sections.pop("dataset", {})}
        if family == "rfdetr":
            dataset.pop("num_classes")
        train = {"num_epochs": 1, "accelerator": ACCELERATOR, "activation_checkpoint": False}
        document = {
            "results_dir": str(folder),
            "wandb": {"enable": False},
            "model": TINY[family],
            "dataset": dataset,
            "train": {**train, **sections.pop("train", {})},
            **sections,
        }
        spec = folder / f"{command}.json"
        spec.write_text(json.dumps(document))
        return int(main([command, "-e", str(spec)]) or 0)

    return start
