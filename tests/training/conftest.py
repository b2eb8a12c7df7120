"""A generated dataset of colored rectangles, and a spec that trains in a second."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from rtdetr_tool.spec import ExperimentSpec
from rtdetr_tool.spec.dataset import AugmentationSpec, DatasetSpec
from rtdetr_tool.spec.experiment import WandbSpec
from rtdetr_tool.spec.model import ModelSpec
from rtdetr_tool.spec.train import TrainSpec

COLORS = {1: (220, 40, 40), 2: (40, 200, 60)}
NAMES = {1: "red", 2: "green"}


def draw_dataset(folder: Path, count: int, seed: int, objects: int = 2, side: int = 64) -> dict[str, str]:
    """`count` images with exactly `objects` rectangles each, and their COCO file."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for index in range(count):
        canvas = rng.integers(90, 130, (side, side, 3)).astype(np.uint8)
        for _ in range(objects):
            category = int(rng.integers(1, 3))
            w, h = rng.integers(side // 4, side // 2, 2)
            x, y = int(rng.integers(0, side - w)), int(rng.integers(0, side - h))
            canvas[y : y + h, x : x + w] = COLORS[category]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": category,
                    "iscrowd": 0,
                    "bbox": [x, y, int(w), int(h)],
                    "area": int(w * h),
                }
            )
        name = f"{index:03d}.png"
        Image.fromarray(canvas).save(folder / "images" / name)
        images.append({"id": index + 1, "file_name": name, "width": side, "height": side})
    categories = [{"id": key, "name": name} for key, name in NAMES.items()]
    file = folder / "annotations.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return {"image_dir": str(folder / "images"), "json_file": str(file)}


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """Train (8 images) and validation (3 images) sources."""
    root = tmp_path_factory.mktemp("drawn")
    return {"train": draw_dataset(root / "train", 8, 1), "val": draw_dataset(root / "val", 3, 2)}


@pytest.fixture
def make_spec(sources, tmp_path):
    """`make_spec(train__num_epochs=2, train__optim__lr=1e-3, model__dn_number=0)`: a tiny spec with changes."""

    def make(**changes) -> ExperimentSpec:
        spec = ExperimentSpec(
            results_dir=str(tmp_path),
            wandb=WandbSpec(enable=False),
            model=ModelSpec(
                backbone="timm/test_resnet",
                hidden_dim=32,
                nheads=4,
                dim_feedforward=32,
                feat_channels=[32, 32, 32],
                num_queries=10,
                num_select=10,
                dec_layers=2,
                dn_number=4,
            ),
            dataset=DatasetSpec(
                train_data_sources=[sources["train"]],
                val_data_sources=sources["val"],
                test_data_sources=sources["val"],
                num_classes=3,
                batch_size=4,
                workers=0,
                pin_memory=False,
                augmentation=AugmentationSpec(
                    multi_scales=[],
                    train_spatial_size=[64, 64],
                    eval_spatial_size=[64, 64],
                    distortion_prob=0.0,
                    iou_crop_prob=0.0,
                ),
            ),
            train=TrainSpec(
                num_epochs=1,
                seed=7,
                results_dir=str(tmp_path / "train"),
                activation_checkpoint=False,
                accelerator="cpu",
            ),
        )
        for path, value in changes.items():
            spec = _replaced(spec, path.split("__"), value)
        return spec

    return make


def _replaced(node, names, value):
    inner = value if len(names) == 1 else _replaced(getattr(node, names[0]), names[1:], value)
    return dataclasses.replace(node, **{names[0]: inner})


@pytest.fixture
def reference(monkeypatch):
    """Imports a module of RF-DETR's package, without its COCO evaluation."""
    for name in ("", ".core", ".core.mask", ".core.faster_eval_api"):
        monkeypatch.setitem(sys.modules, f"faster_coco_eval{name}", mock.MagicMock())
    return lambda name: pytest.importorskip(f"rfdetr.{name}", reason="requires the package rfdetr")
