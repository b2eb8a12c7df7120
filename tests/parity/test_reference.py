"""Ours compared with what the official RT-DETR computes: outputs, losses and gradients of fixtures.

The fixtures come from `scripts/reference_fixtures.py`; weights, images and targets are its formulas.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from rtdetr_tool.families.rtdetr.official import from_official
from rtdetr_tool.losses.build import build_criterion
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops.structures import Target
from rtdetr_tool.spec import spec_from_dict

ROOT = Path(__file__).parents[2]


def script() -> ModuleType:
    location = importlib.util.spec_from_file_location("reference_fixtures", ROOT / "scripts" / "reference_fixtures.py")
    module = importlib.util.module_from_spec(location)
    location.loader.exec_module(module)
    return module


SCRIPT = script()


@pytest.fixture(params=[1, 2])
def fixture(request) -> dict[str, Any]:
    path = Path(__file__).parent / "fixtures" / f"official_v{request.param}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def spec():
    width = SCRIPT.WIDTH
    model = {
        "backbone": "resnet_18d", "hidden_dim": width, "nheads": SCRIPT.HEADS, "feat_channels": [width] * 3,
        "dim_feedforward": SCRIPT.INNER, "dec_layers": SCRIPT.LAYERS, "num_queries": SCRIPT.QUERIES, "num_select": 10,
        "dn_number": 0,
    }  # fmt: skip
    return spec_from_dict({"model": model}).model


def detector_of(fixture: dict[str, Any]) -> nn.Module:
    shares = torch.full((12,), 0.25)  # the one constant of version 2
    weights = {
        name: shares if name.endswith("num_points_scale") else SCRIPT.weight(name, torch.zeros(shape))
        for name, shape in fixture["shapes"].items()
    }
    detector = build_detector(spec(), SCRIPT.CLASSES)
    detector.load_state_dict(from_official(weights))
    return detector


def targets() -> list[Target]:
    size = (SCRIPT.SIDE, SCRIPT.SIDE)
    return [Target(t["boxes"], t["labels"], n, size, size) for n, t in enumerate(SCRIPT.targets())]


def test_outputs_are_those_of_the_reference(fixture):
    with torch.no_grad():
        found = detector_of(fixture).eval()(SCRIPT.images())
    torch.testing.assert_close(found.logits, torch.tensor(fixture["logits"]), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(found.boxes, torch.tensor(fixture["boxes"]), atol=5e-6, rtol=1e-5)


def test_losses_and_gradients_are_those_of_the_reference(fixture):
    detector = SCRIPT.fix_norms(detector_of(fixture))
    losses = build_criterion(spec())(detector(SCRIPT.images(), targets()), targets())
    assert float(losses["loss"].detach()) == pytest.approx(fixture["total"], rel=2e-6)
    losses["loss"].backward()
    for name, norm in fixture["gradient_norms"].items():
        ours = next(iter(from_official({name: torch.zeros(())})))
        gradient = dict(detector.named_parameters())[ours].grad
        assert float(gradient.norm()) == pytest.approx(norm, rel=1e-4)
