"""A small project for the tests of commands (images, labels, a spec), and one with its checkpoint in a format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rtdetr_tool import Detector
from rtdetr_tool.cli import main
from rtdetr_tool.formats.table import FORMATS

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

    def evaluated(self, checkpoint: Path) -> dict:
        """The content of results.json of `evaluate`."""
        assert self.run("evaluate", f"evaluate.checkpoint={checkpoint}", "evaluate.report=false") == 0
        return json.loads((self.folder / "results" / "evaluate" / "results.json").read_text())

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


class ExportedProject(Project):
    """A project with its checkpoint (`weights`) in a format, in FP32 (`file`), and the report of that (`first`).

    Args:
        name: a format of `formats.table`.
        notes: for the metadata of the file.
        backbone: of the detector; resnet_18 is large enough for the weights to dominate the file size.
    """

    def __init__(self, folder: Path, name: str, notes: str, backbone: str = "timm/test_resnet") -> None:
        super().__init__(folder)
        self.spec["model"]["backbone"] = backbone
        self.write()
        self.format, self.weights = FORMATS[name], self.checkpoint(lively=True)
        code, self.file = self.export("model.onnx", f"export.notes={notes}")
        assert code == 0
        self.first = self.report()

    def export(self, name: str, *overrides: str) -> tuple[int, Path]:
        """Export the checkpoint; returns the exit code, and the file that was to be written."""
        file = self.folder / name
        options = [f"export.checkpoint={self.weights}", f"export.onnx_file={file}"]
        code = self.run("export", *options, f"export.format={self.format.name}", *overrides)
        return code, file.with_suffix(self.format.suffix)

    def report(self) -> dict:
        """The report of the last export."""
        return json.loads((self.folder / "results" / "export" / "export.json").read_text())

    def check_agreement(self) -> None:
        """`evaluate`, and the Python API on images of another number than the batch size, agree with the weights."""
        expected, actual = self.evaluated(self.weights), self.evaluated(self.file)
        assert actual["mAP"] == pytest.approx(expected["mAP"], abs=1e-4)
        images = [str(self.image(number)) for number in (1, 2, 3)]
        for one, other in zip(
            Detector.from_checkpoint(self.file).predict(images, threshold=0.1),
            Detector.from_checkpoint(self.weights).predict(images, threshold=0.1),
            strict=True,
        ):
            np.testing.assert_allclose(one.confidence, other.confidence, atol=1e-4)
            np.testing.assert_allclose(one.xyxy, other.xyxy, atol=1e-2)


@pytest.fixture(scope="session")
def make_project():
    """`make_project(folder)`, for fixtures with a larger scope than a test."""
    return Project


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


@pytest.fixture(scope="session")
def make_exported():
    """`make_exported(folder, format, notes)`, for fixtures of a module."""
    return ExportedProject


@pytest.fixture
def export_rfdetr(project):
    """`export_rfdetr(format, *overrides)` writes a small RF-DETR, with `masks` one that predicts them; returns the
    checkpoint, the file and the differences between them."""

    def export(name: str, *overrides: str, masks: bool = False) -> tuple[Path, Path, list[dict]]:
        small = {"resolution": 64, "out_feature_indexes": [1, 2], "hidden_dim": 32, "dec_layers": 1, "num_queries": 8}
        small |= {"dim_feedforward": 32, "group_detr": 2, "segmentation_head": masks}
        project.spec["model"] = {"arch": "rfdetr", "rfdetr": small}
        project.write()
        weights, file = project.checkpoint(), project.folder / f"model{FORMATS[name].suffix}"
        options = (f"export.checkpoint={weights}", f"export.onnx_file={file}", f"export.format={name}")
        assert project.run("export", *options, *overrides) == 0
        report = json.loads((project.folder / "results" / "export" / "export.json").read_text())
        return weights, file, report["differences"]

    return export
