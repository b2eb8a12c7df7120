"""Twenty steps of RF-DETR Nano with its recipe, with `fit` and with the parts of Roboflow's package (rfdetr 1.11).

Both start from the same random weights and use the same batches without augmentation. The package provides model,
criterion, parameter groups and optimizer settings; its trainer only adds features without effect on losses (EMA, logs).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from rtdetr_tool.families.rfdetr.names import from_rfdetr
from rtdetr_tool.ops.structures import Batch
from rtdetr_tool.spec import spec_from_dict
from rtdetr_tool.training import optimized_module
from rtdetr_tool.training.fit import fit
from rtdetr_tool.training.module import DetectorModule
from tests.parity.rfdetr_pair import CLASSES, build_theirs, disturb, normalized, their_criterion

SIDE = 64
SMALL = {"resolution": SIDE, "num_queries": 12, "group_detr": 3}


def write_dataset(folder):
    """Eight images with two colored rectangles each."""
    rng, images, annotations = np.random.default_rng(5), [], []
    for number in range(1, 9):
        pixels = rng.integers(90, 130, (SIDE, SIDE, 3)).astype(np.uint8)
        for category in (1, 2):
            x, y, width, height = (int(v) for v in rng.integers(4, 30, 4))
            pixels[y : y + height, x : x + width] = (220, 40, 40) if category == 1 else (40, 200, 60)
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": category, "iscrowd": 0,
                                "bbox": [x, y, width, height], "area": width * height})  # fmt: skip
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]
    (folder / "labels.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return {"image_dir": str(folder), "json_file": str(folder / "labels.json")}


class Record(pl.Callback):
    """Records the batch, the loss and the learning rate of every parameter in each step."""

    def __init__(self):
        self.batches, self.losses, self.rates = [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append((batch.images.clone(), [(t.labels.clone(), t.boxes.clone()) for t in batch.targets]))
        self.losses.append(outputs["loss"].item())

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        names = {id(p): name for name, p in pl_module.detector.named_parameters()}
        self.rates.append({names[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"]})


class DoubleModule(DetectorModule):
    """In double precision, because rounding in float32 reorders the selected tokens after a few steps."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.detector.double()

    def prepare_images(self, batch, multi_scale):
        return super().prepare_images(batch, multi_scale).double()

    def compute_losses(self, batch):
        targets = [replace(target, boxes=target.boxes.double()) for target in batch.targets]
        return super().compute_losses(Batch(batch.images, targets))


def train_here(weights, folder, steps):
    source = write_dataset(folder)
    spec = spec_from_dict(
        {
            "model": {"arch": "rfdetr", "rfdetr": SMALL},
            "dataset": {"train_data_sources": [source], "num_classes": CLASSES + 1, "workers": 0, "batch_size": 4,
                        "class_ids": "raw", "augmentation": {"multi_scales": [], "scale_jitter_prob": 0.0,
                                                             "flip_prob": 0.0}},
            "train": {"accelerator": "cpu", "results_dir": str(folder / "run"), "num_epochs": steps // 2,
                      "checkpoint_interval": steps // 2},
        }
    )  # fmt: skip

    def build(spec, class_map):
        module = DoubleModule(spec, class_map)
        module.start_from(weights, "the test", [])
        return module

    record = Record()
    fit(spec, [record], build, limit_val_batches=0, max_steps=steps)
    return record


def train_there(model, batches, get_param_dict):
    """Losses and learning rates of each step, with the optimizer from the package's `configure_optimizers`."""
    args = argparse.Namespace(
        lr=1e-4, lr_encoder=1.5e-4, lr_vit_layer_decay=0.8, lr_component_decay=0.7, weight_decay=1e-4,
        out_feature_indexes=[3, 6, 9, 12],
    )  # fmt: skip
    criterion = their_criterion("nano", **SMALL).train()
    optimizer = torch.optim.AdamW(get_param_dict(args, model.train()), lr=args.lr, weight_decay=args.weight_decay)
    losses = []
    for images, targets in batches:
        labels = [{"labels": classes, "boxes": boxes.double()} for classes, boxes in targets]
        terms = criterion(model(normalized((images.float() / 255).double())), labels)
        loss = sum(weight * terms[name] for name, weight in criterion.weight_dict.items() if name in terms)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        losses.append(loss.item())
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return losses, {name: rate_of[id(p)] for name, p in model.named_parameters() if id(p) in rate_of}


@pytest.fixture
def all_double(monkeypatch):
    """Replace `Tensor.float()`, with which both sides compute boxes, because Adam amplifies its rounding."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    unfused = optimized_module.build_optimizer  # the fused kernel needs its step count in float32
    monkeypatch.setattr(
        optimized_module, "build_optimizer", lambda *given, **settings: unfused(*given, **{**settings, "fused": False})
    )


@pytest.mark.parametrize("steps", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_losses_and_rates_of_every_step_are_those_of_the_package(steps, tmp_path, package_part, all_double):
    get_param_dict = package_part("training.param_groups").get_param_dict
    torch.manual_seed(0)
    original = build_theirs("nano", positional_encoding_size=SIDE // 16, **SMALL)
    original.double()
    disturb(original)  # distinct scores, so that rounding does not reorder the selected tokens
    record = train_here(from_rfdetr(original.state_dict()), tmp_path, steps)
    losses, rates = train_there(original, record.batches, get_param_dict)
    assert len(record.losses) == len(losses) == steps
    difference = max(abs(a - b) for a, b in zip(record.losses, losses, strict=True))
    print(f"{steps} steps, loss {losses[0]:.4f} to {losses[-1]:.4f}, largest difference {difference:.1e}")
    assert difference < 1e-3 and abs(losses[0] - losses[-1]) > 1e-2
    expected = {name: value.item() for name, value in from_rfdetr(
        {name: torch.tensor(rate, dtype=torch.float64) for name, rate in rates.items()}).items()}  # fmt: skip
    for used in record.rates:
        assert set(used) <= set(expected) and len(used) > 250
        assert used == pytest.approx({name: expected[name] for name in used})
