"""A small project for the tests of commands: images, labels, a spec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rtdetr_tool.cli import main

SIDE = 64


class Project:
    """A folder with six images, a COCO file and a spec; `run` runs a command on it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.labels, self.spec_file = folder, folder / "labels.json", folder / "spec.json"
        (folder / "images").mkdir()
        rng = np.random.default_rng(0)
        images, annotations = [], []
        for number in range(1, 7):
            Image.fromarray(rng.integers(0, 255, (48, SIDE, 3), dtype=np.uint8)).save(self.image(number))
            images.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": 48})
            annotations.append(
                {"id": number, "image_id": number, "category_id": 1, "bbox": [8, 8, 20, 20], "area": 400, "iscrowd": 0}
            )
        self.coco = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
        source = {"image_dir": str(folder / "images"), "json_file": str(self.labels)}
        self.spec: dict[str, Any] = {
            "results_dir": str(folder / "results"),
            "wandb": {"enable": False},
            "model": {
                "backbone": "timm/test_resnet", "hidden_dim": 16, "nheads": 2, "feat_channels": [16, 16, 16],
                "dim_feedforward": 16, "num_queries": 8, "num_select": 8, "dec_layers": 1, "dn_number": 4,
            },
            "dataset": {
                "train_data_sources": [source], "val_data_sources": source, "test_data_sources": source,
                "infer_data_sources": {"image_dir": str(folder / "images")},
                "num_classes": 2, "batch_size": 3, "workers": 0,
                "augmentation": {
                    "multi_scales": [], "train_spatial_size": [SIDE, SIDE], "eval_spatial_size": [SIDE, SIDE]
                },
            },
            "train": {"is_dry_run": True, "accelerator": "cpu"},
        }  # fmt: skip
        self.write()

    def image(self, number: int) -> Path:
        return self.folder / "images" / f"{number}.png"

    def write(self) -> None:
        self.labels.write_text(json.dumps(self.coco))
        self.spec_file.write_text(json.dumps(self.spec))

    def run(self, command: str, *overrides: str) -> int:
        return main([command, "-e", str(self.spec_file), *overrides])

    def label_best_detections(self) -> None:
        """Use the three best detections of each image as its labels, so that a random detector scores high on them."""
        rows = json.loads((self.folder / "results" / "evaluate" / "predictions.json").read_text())
        rows.sort(key=lambda row: -row["score"])
        best = [row for number in range(1, 7) for row in [row for row in rows if row["image_id"] == number][:3]]
        self.coco["annotations"] = [
            {"id": number, "image_id": row["image_id"], "category_id": row["category_id"], "bbox": row["bbox"],
             "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
            for number, row in enumerate(best, start=1)
        ]  # fmt: skip
        self.write()

    def status(self, command: str) -> list[dict]:
        path = self.folder / "results" / command / "status.json"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def checkpoint(self, lively: bool = False) -> Path:
        """Untrained weights, saved as in training; `lively` ones detect cats of many sizes everywhere."""
        from rtdetr_tool.checkpoints.io import save_checkpoint
        from rtdetr_tool.checkpoints.metadata import build_metadata
        from rtdetr_tool.models.build import build_detector
        from rtdetr_tool.spec import spec_from_dict, spec_to_dict

        spec = spec_from_dict(self.spec, "train")
        with (
            torch.random.fork_rng()
        ):  # the same weights in every order of tests; others may have ties in the query selection
            torch.manual_seed(0)
            detector = build_detector(spec.model, spec.dataset.num_classes)
        if lively:
            generator = torch.Generator().manual_seed(0)
            for name, parameter in detector.named_parameters():
                if "dec_bbox_head" in name or "dec_score_head" in name:
                    parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
            detector.decoder.dec_score_head[-1].bias.data = torch.tensor([-9.0, 0.0])
        weights = {f"model.model.{name}": tensor for name, tensor in detector.state_dict().items()}
        meta = build_metadata("test", spec_to_dict(spec), [{"index": 1, "id": 1, "name": "cat"}])
        path = self.folder / "model_epoch_000.pth"
        save_checkpoint({"state_dict": weights, "tao_model": "rtdetr", "rtdetr_tool": meta}, path)
        return path


@pytest.fixture(scope="session")
def make_project():
    """`make_project(folder)`, for fixtures with a larger scope than a test."""
    return Project


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)
