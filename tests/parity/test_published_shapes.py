"""The complete published RT-DETR and RT-DETRv2 detectors at their input sizes, against transformers.

With random weights, this tests shapes, the rename table and the arithmetic at full width and depth.
"""

from __future__ import annotations

import pytest
import torch

from rtdetr_tool.families.rtdetr.transformers_names import from_transformers
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.spec.model import ModelSpec

transformers = pytest.importorskip("transformers")

CLASSES = 80
BASIC, BOTTLENECK = [64, 128, 256, 512], [256, 512, 1024, 2048]

# name -> (transformers' backbone, transformers' model, ours), differences from the defaults of each
PUBLISHED = {
    "R18": (
        {"depths": [2, 2, 2, 2], "hidden_sizes": BASIC, "layer_type": "basic"},
        {"hidden_expansion": 0.5, "decoder_layers": 3},
        {"backbone": "resnet_18d", "expansion": 0.5, "dec_layers": 3},
    ),
    "R50": ({"depths": [3, 4, 6, 3], "hidden_sizes": BOTTLENECK}, {}, {"backbone": "resnet_50d"}),
    "R101": (
        {"depths": [3, 4, 23, 3], "hidden_sizes": BOTTLENECK},
        {"encoder_hidden_dim": 384, "encoder_ffn_dim": 2048, "decoder_in_channels": [384] * 3},
        {
            "backbone": "resnet_101d", "hidden_dim": 384, "feat_channels": [384] * 3, "dim_feedforward": 2048,
            "dec_hidden_dim": 256, "dec_dim_feedforward": 1024,
        },
    ),
}  # fmt: skip
VERSIONS = {
    "v1": (transformers.RTDetrConfig, transformers.RTDetrForObjectDetection, {}, {}),
    "v2": (transformers.RTDetrV2Config, transformers.RTDetrV2ForObjectDetection, {}, {}),
    "v2 discrete": (
        transformers.RTDetrV2Config,
        transformers.RTDetrV2ForObjectDetection,
        {"decoder_method": "discrete"},
        {"cross_attn_method": "discrete"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_outputs_are_equal(name, version, disturb, query_difference):
    resnet, model, ours = PUBLISHED[name]
    config_class, model_class, sampling, option = VERSIONS[version]
    backbone = transformers.RTDetrResNetConfig(**resnet, out_features=["stage2", "stage3", "stage4"])
    settings = {"encoder_in_channels": resnet["hidden_sizes"][1:], "num_labels": CLASSES, **model, **sampling}
    torch.manual_seed(1)
    reference = model_class(config_class(backbone_config=backbone, **settings)).eval()
    disturb(reference)
    detector = build_detector(ModelSpec(**ours, **option), CLASSES).eval()
    converted, own = from_transformers(reference.state_dict()), detector.state_dict()
    counters = {key for key in own if key.endswith("num_batches_tracked")}  # transformers' frozen norms have none
    assert set(own) - counters == set(converted) - counters
    detector.load_state_dict(converted, strict=False)
    images = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, actual = reference(images), detector(images)
    difference = query_difference((actual.logits, actual.boxes), (expected.logits, expected.pred_boxes))
    print(f"{name} {version}: largest difference {difference:.1e}, largest logit {expected.logits.abs().max():.1f}")
    assert difference < 1e-4
