"""Every trained weight of a detector with keypoints gets a gradient: DDP would wait for one that never comes."""

from __future__ import annotations

import pytest
import torch

from rtdetr_tool.losses.build import build_criterion
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops.structures import Target
from rtdetr_tool.spec import ModelSpec, spec_from_dict

SMALL = {
    "variant": "keypoint_preview", "resolution": 48, "out_feature_indexes": [1, 2], "hidden_dim": 16, "sa_nheads": 2,
    "ca_nheads": 2, "dec_layers": 2, "num_queries": 8, "group_detr": 2, "num_keypoints_per_class": [3, 0],
}  # fmt: skip


def target(points: float) -> Target:
    """An object of class 0 with 3 keypoints of this visibility."""
    one = Target(torch.tensor([[0.5, 0.5, 0.4, 0.4]]), torch.tensor([0]), 0, (48, 48), (48.0, 48.0))
    one.keypoints = torch.tensor([[[0.4, 0.4, points], [0.5, 0.5, points], [0.6, 0.6, points]]])
    return one


@pytest.mark.parametrize("visibility", [2.0, 0.0])
@pytest.mark.parametrize("downscale", [1, 2])
@pytest.mark.parametrize(("image", "objects"), [(True, False), (False, True), (False, False)])
def test_every_trained_weight_gets_a_gradient(image, objects, downscale, visibility):
    fields = {
        "keypoint_cross_attn": image, "inter_instance_kp_attn": objects,
        "grouppose_keypoint_dim_downscale": downscale,
    }  # fmt: skip
    spec = spec_from_dict({"model": {"arch": "rfdetr", "rfdetr": {**SMALL, **fields}}})
    model: ModelSpec = spec.model
    torch.manual_seed(0)
    detector = build_detector(model, 2).train()
    criterion = build_criterion(model).train()
    targets = [target(visibility), target(visibility)]
    losses = criterion(detector(torch.rand(2, 3, 48, 48)), targets)
    losses["loss"].backward()
    without = [name for name, weight in detector.named_parameters() if weight.requires_grad and weight.grad is None]
    assert not without
