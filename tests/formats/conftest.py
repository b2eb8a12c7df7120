"""A small detector and its graph, shared by the tests of formats."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from rtdetr_tool.formats.export_model import ExportModel
from rtdetr_tool.formats.onnx.export import export_graph
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.spec import ModelSpec

SIZE = (64, 96)


@pytest.fixture(scope="session")
def detector():
    """A detector of 3 classes with varied outputs (scores between 0 and 1, boxes of many sizes)."""
    torch.manual_seed(0)
    spec = dataclasses.replace(
        ModelSpec(), backbone="resnet_18", hidden_dim=32, nheads=4, feat_channels=[32, 32, 32], dim_feedforward=64,
        num_queries=20, num_select=15, dec_layers=2, dn_number=0,
    )  # fmt: skip
    built = build_detector(spec, num_classes=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if "bbox_head" in name or "score_head" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return built


@pytest.fixture(scope="session")
def export_model(detector):
    return ExportModel(detector).eval()


@pytest.fixture(scope="session")
def steady_detector(detector):
    """A detector that is robust to rounding: every token is a query, and boxes are near anchors."""
    steady = copy.deepcopy(detector)
    steady.decoder.num_queries = 1000
    with torch.no_grad():
        for name, parameter in steady.named_parameters():
            if "bbox_head" in name:
                parameter.mul_(0.3)
    return steady


@pytest.fixture(scope="session")
def steady_graph(steady_detector):
    return export_graph(ExportModel(steady_detector).eval(), SIZE, None, 17)
