"""Ours compared with what TAO's own modules compute: outputs, losses, gradients and feature maps of fixtures.

The fixtures come from `scripts/tao_fixtures.py`; weights, images, targets and noise are its formulas.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from timm.models.efficientvit_mit import LiteMLA
from torch import Tensor, nn

from rtdetr_tool.catalog import BACKBONE_ALIASES
from rtdetr_tool.checkpoints.backbone_names import native_backbone_names
from rtdetr_tool.checkpoints.detector_file import read_detector
from rtdetr_tool.checkpoints.loading import load_into
from rtdetr_tool.losses.build import build_criterion
from rtdetr_tool.models.build import build_backbone, build_detector
from rtdetr_tool.ops.structures import Target
from rtdetr_tool.spec import ModelSpec, spec_from_dict

FIXTURES = Path(__file__).parent / "fixtures"
SCRIPTS = Path(__file__).parents[2] / "scripts"


def script(name: str) -> ModuleType:
    location = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(location)
    location.loader.exec_module(module)
    return module


FORMULAS = script("reference_fixtures")
NOISE_SEED, DENOISING = 7, 6  # of scripts/tao_fixtures.py

DETECTOR: dict[str, Any] = json.loads((FIXTURES / "tao.json").read_text(encoding="utf-8"))
MAPS: dict[str, Any] = json.loads((FIXTURES / "tao_backbones.json").read_text(encoding="utf-8"))
LARGE = ("resnet_50", "convnext_tiny", "convnextv2_nano", "efficientvit_l0")


def weights(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return {name: FORMULAS.weight(name, torch.zeros(shape)) for name, shape in shapes.items()}


def model_spec(**fields: Any) -> ModelSpec:
    return spec_from_dict({"model": {"pretrained_backbone_path": None, **fields}}).model


SPEC = model_spec(
    backbone="resnet_18", hidden_dim=FORMULAS.WIDTH, feat_channels=[FORMULAS.WIDTH] * 3, dec_layers=FORMULAS.LAYERS,
    num_queries=FORMULAS.QUERIES, num_select=10, dn_number=DENOISING,
)  # fmt: skip


@pytest.fixture
def detector(tmp_path) -> nn.Module:
    """Ours with TAO's weights, read from a file as TAO writes it."""
    path = tmp_path / "model_epoch_000.pth"
    state = {f"model.{name}": tensor for name, tensor in weights(DETECTOR["shapes"]).items()}
    torch.save({"state_dict": state, "tao_model": "rtdetr", "epoch": 0}, path)
    detector = build_detector(SPEC, FORMULAS.CLASSES)
    detector.load_state_dict(read_detector(path).weights)
    return detector


def targets() -> list[Target]:
    size = (FORMULAS.SIDE, FORMULAS.SIDE)
    return [Target(t["boxes"], t["labels"], n, size, size) for n, t in enumerate(FORMULAS.targets())]


def test_outputs_are_those_of_tao(detector):
    with torch.no_grad():
        found = detector.eval()(FORMULAS.images())
    torch.testing.assert_close(found.logits, torch.tensor(DETECTOR["logits"]), atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(found.boxes, torch.tensor(DETECTOR["boxes"]), atol=1e-6, rtol=1e-6)


def test_losses_with_denoising_and_gradients_are_those_of_tao(detector):
    FORMULAS.fix_norms(detector)
    torch.manual_seed(NOISE_SEED)
    losses = build_criterion(SPEC)(detector(FORMULAS.images(), targets()), targets())
    assert float(losses["loss"].detach()) == pytest.approx(DETECTOR["total"], rel=1e-6)
    losses["loss"].backward()
    gradients = dict(detector.named_parameters())
    for name, norm in DETECTOR["gradient_norms"].items():
        assert float(gradients[name.removeprefix("model.")].grad.norm()) == pytest.approx(norm, rel=1e-5), name


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in MAPS]
)
def test_feature_maps_of_backbones_are_those_of_tao(name):
    backbone = build_backbone(model_spec(backbone=BACKBONE_ALIASES.get(name, name)))
    native = native_backbone_names(weights(MAPS[name]["shapes"]))
    load_into(backbone, native, source="TAO")
    for module in backbone.modules():
        if isinstance(module, LiteMLA):
            module.eps = 1e-15  # as in TAO; ours is 1e-5, which half precision can represent (docs/backbones.md)
    single = name.startswith(("fan", "edgenext"))
    dtype, tolerance = (torch.float32, 1e-5) if single else (torch.float64, 1e-6)
    with torch.no_grad():
        maps = backbone.to(dtype).eval()(FORMULAS.images().to(dtype))
    for found, expected in zip(maps, MAPS[name]["maps"], strict=True):
        assert list(found.shape) == expected["shape"]
        values = found.flatten()
        picked = values[:: max(1, len(values) // 8)][:8].tolist()
        numbers = [float(values.mean()), float(values.std()), *picked]
        assert numbers == pytest.approx(expected["values"], rel=tolerance, abs=tolerance * expected["values"][1])
