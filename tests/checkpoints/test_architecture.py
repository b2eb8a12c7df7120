"""Tests of rtdetr_tool.families.rtdetr.architecture: derive the architecture of every backbone of the catalog."""

from __future__ import annotations

import pytest
import torch

from rtdetr_tool.catalog import BACKBONES, FOUNDATION_MODELS
from rtdetr_tool.families.rtdetr.architecture import architecture_of, backbone_of, points_per_level
from rtdetr_tool.families.rtdetr.spec import FrozenFmSpec
from rtdetr_tool.models.build import build_backbone, build_detector
from rtdetr_tool.spec import ModelSpec


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_of_the_catalog_is_recognized_by_its_tensors(name):
    with torch.device("meta"):
        backbone = build_backbone(ModelSpec(backbone=name))
    assert backbone_of({f"backbone.{key}": tensor for key, tensor in backbone.state_dict().items()}) == name


def test_a_network_that_is_not_in_the_catalog_is_not_guessed():
    with torch.device("meta"):
        backbone = build_backbone(ModelSpec(backbone="resnet_18"))
    weights = {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    assert backbone_of({name: tensor for name, tensor in weights.items() if "layer4.1" not in name}) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"return_interm_indices": [2, 3], "feat_strides": [16, 32], "feat_channels": [32] * 2, "use_encoder_idx": [1]},
        {
            "return_interm_indices": [0, 1, 2, 3], "feat_strides": [4, 8, 16, 32], "feat_channels": [32] * 4,
            "use_encoder_idx": [3],
        },
        {"return_interm_indices": [3], "feat_strides": [32], "feat_channels": [32], "use_encoder_idx": [0]},
        {"expansion": 0.5, "depth_mult": 2, "enc_layers": 2},
        {"dec_hidden_dim": 48, "dec_dim_feedforward": 24},
        {"dn_number": 0, "dec_layers": 1},
    ],
)  # fmt: skip
def test_fields_from_shapes_are_those_of_the_built_detector(fields):
    levels = len(fields.get("feat_channels", [1, 2, 3]))
    given = {
        "backbone": "resnet_18", "hidden_dim": 32, "feat_channels": [32] * levels, "num_feature_levels": levels,
        "dim_feedforward": 40, **fields,
    }  # fmt: skip
    with torch.device("meta"):
        weights = build_detector(ModelSpec(**given), 5).state_dict()
    model, classes = architecture_of(weights, {}, "a.pth")
    told = {name: value for name, value in given.items() if name != "use_encoder_idx"}
    if "dn_number" not in fields:
        assert "dn_number" not in model
    assert classes == 5 and told.items() <= model.items()


@pytest.mark.parametrize("name", FOUNDATION_MODELS)
def test_a_frozen_foundation_model_is_recognized_by_its_level(name):
    with torch.device("meta"):
        model = ModelSpec(backbone="resnet_18", frozen_fm=FrozenFmSpec(enabled=True, backbone=name))
        weights = build_detector(model, 5).state_dict()
    fields, _ = architecture_of(weights, {}, "a.pth")
    assert fields["frozen_fm"] == {"enabled": True, "backbone": name, "checkpoint": None}
    assert fields["num_feature_levels"] == 3 and fields["return_interm_indices"] == [1, 2, 3]


@pytest.mark.parametrize("points", [[4], [1], [4, 2, 1], [2, 4, 4, 3]])
def test_points_follow_from_their_shares(points):
    each = points * 3 if len(points) == 1 else points
    assert points_per_level(torch.tensor([1 / n for n in each for _ in range(n)])) == points
