"""A small dataset and small detectors for the tests of the Python API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rtdetr_tool.api import Detector

SIDE = 64
SMALL_RTDETR = {
    "hidden_dim": 16, "nheads": 2, "feat_channels": [16, 16, 16], "dim_feedforward": 16, "num_queries": 8,
    "num_select": 8, "dec_layers": 1, "dn_number": 4,
    "dataset.augmentation.train_spatial_size": [SIDE, SIDE], "dataset.augmentation.eval_spatial_size": [SIDE, SIDE],
    "dataset.augmentation.multi_scales": [],
}  # fmt: skip
SMALL_RFDETR = {"resolution": SIDE, "dec_layers": 1, "num_queries": 8, "group_detr": 2, "dim_feedforward": 24}


class Sample:
    """Six generated images with two categories, as a COCO dataset."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.images, self.labels = folder, folder / "images", folder / "labels.json"
        self.images.mkdir(parents=True)
        rng = np.random.default_rng(0)
        images, annotations = [], []
        for number in range(1, 7):
            Image.fromarray(rng.integers(0, 255, (48, SIDE, 3), dtype=np.uint8)).save(self.image(number))
            images.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": 48})
            for category in (1, 2):
                box = [8 * category, 8, 20, 20]
                annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": category,
                                    "bbox": box, "area": 400, "iscrowd": 0})  # fmt: skip
        categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        self.coco: dict[str, Any] = {"images": images, "annotations": annotations, "categories": categories}
        self.labels.write_text(json.dumps(self.coco))

    def image(self, number: int) -> Path:
        return self.images / f"{number}.png"

    @property
    def source(self) -> dict[str, str]:
        return {"image_dir": str(self.images), "json_file": str(self.labels)}

    @property
    def keywords(self) -> dict[str, Any]:
        """Keywords for `train` and `evaluate`."""
        return {"train_data_sources": [self.source], "val_data_sources": self.source, "num_workers": 0}


def lively(detector: Detector) -> Detector:
    """Random weights that detect objects of many sizes everywhere, with scores around 0.5."""
    generator = torch.Generator().manual_seed(0)
    spread = {"dec_bbox_head": 0.3, "dec_score_head": 0.3, "decoder.class_embed": 0.1, "decoder.bbox_embed": 0.03}
    for name, parameter in detector.network.named_parameters():
        for part, deviation in spread.items():
            if part in name:
                parameter.data = deviation * torch.randn(parameter.shape, generator=generator)
    return detector
