"""RF-DETR with other channels than RGB against Roboflow's package: its own code adapts the same random weights."""

from __future__ import annotations

import pytest
import torch

from rtdetr_tool.checkpoints.input_channels import adapted_from_rgb
from rtdetr_tool.families.rfdetr.api import RFDETRNano
from rtdetr_tool.families.rfdetr.names import from_rfdetr
from tests.parity.rfdetr_pair import build_theirs, disturb, their_config
from tests.parity.test_rfdetr import FEW, TOLERANCE, check_losses, check_outputs, make_targets

inference = pytest.importorskip("rfdetr.inference", reason="requires the package rfdetr")


@pytest.fixture
def adapted(monkeypatch, tmp_path):
    """The package's model and ours for a number of channels, from one file with weights of an RGB model."""

    def build(channels: int):
        torch.manual_seed(0)
        reference = build_theirs("nano", **FEW)
        disturb(reference)
        file = tmp_path / "rgb.pth"
        torch.save({"model": reference.state_dict()}, file)
        monkeypatch.setattr(inference, "build_model", lambda args: reference)
        monkeypatch.setattr(inference, "load_pretrain_weights", lambda *args, **keywords: [])
        theirs = inference._build_model_context(their_config("nano", num_channels=channels, **FEW)).model
        ours = RFDETRNano(str(file), device="cpu", num_channels=channels)
        return theirs, ours.network

    return build


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_the_first_convolution_is_adapted_as_in_the_package(channels):
    weight = torch.randn(6, 3, 4, 4)
    assert torch.equal(adapted_from_rgb(weight, channels), inference._adapt_input_conv(channels, weight))


@pytest.mark.parametrize("channels", [1, 4])
def test_outputs_and_losses_are_equal(adapted, channels):
    theirs, ours = adapted(channels)
    weights = from_rfdetr(theirs.state_dict())
    assert all(torch.equal(weights[name], tensor) for name, tensor in ours.state_dict().items())
    images = torch.rand(2, channels, 160, 128, generator=torch.Generator().manual_seed(1))
    assert check_outputs(theirs, ours, images) < TOLERANCE
    assert check_losses(theirs, ours, "nano", images, make_targets(3, 1), **FEW) < TOLERANCE
