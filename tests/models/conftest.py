"""A detector that is built quickly: every width 32 or less, images of 64 px."""

from __future__ import annotations

import pytest
import torch

from rtdetr_tool.families.rtdetr.model.decoder import RTDETRDecoder
from rtdetr_tool.families.rtdetr.model.detector import RTDETR
from rtdetr_tool.models.backbones.timm_resnet import ResNetBackbone
from rtdetr_tool.models.hybrid_encoder import HybridEncoder
from rtdetr_tool.ops.structures import Target

CHANNELS = (8, 16, 24, 32)


@pytest.fixture
def build():
    """`build(num_queries=7, enc_layers=2)`: decoder and encoder arguments by name, `indices` for the levels."""

    def make(indices=(1, 2, 3), encoder=None, frozen_levels=None, **decoder) -> RTDETR:
        torch.manual_seed(0)
        backbone = ResNetBackbone("resnet18d", indices, channels=CHANNELS, layers=(1, 1, 1, 1), stem_width=8)
        settings = {"num_heads": 4, "dim_feedforward": 24, "attention_levels": (len(indices) - 1,)}
        hybrid = HybridEncoder(backbone.channels, 16, **{**settings, **(encoder or {})})
        settings = {"num_queries": 9, "num_layers": 3, "num_heads": 4, "dim_feedforward": 24, "num_denoising": 6}
        detector = RTDETR(backbone, hybrid, RTDETRDecoder([16] * len(indices), 3, 16, **{**settings, **decoder}))
        return disturb(detector)

    return make


@pytest.fixture
def disturbed():
    return disturb


def disturb(detector: RTDETR) -> RTDETR:
    """Randomize tensors that start at zero or identity, so that every tensor has an effect."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in detector.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return detector


@pytest.fixture
def targets() -> list[Target]:
    def target(boxes, labels):
        boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        return Target(boxes, torch.tensor(labels, dtype=torch.long), 0, (64, 64), (64.0, 64.0))

    return [target([[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.3, 0.2]], [0, 2]), target([], [])]


@pytest.fixture
def no_objects() -> list[Target]:
    nothing = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), 0, (64, 64), (64.0, 64.0))
    return [nothing, nothing]


@pytest.fixture
def images():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
