"""Weights in the formats of other programs, with published shapes: our detector equals that of transformers.

Official weights are converted twice: official names -> ours -> a directory of transformers, which loads it. (The
official code was compared with ours once, v1 and v2, R18 to R101, with equal outputs; it is not a dependency.)
"""

from __future__ import annotations

import pytest
import torch
from checkpoints.layouts import official_shapes, random_weights

from rtdetr_tool.checkpoints.detector_file import read_detector
from rtdetr_tool.cli import main
from rtdetr_tool.formats.opening import open_detector
from rtdetr_tool.spec import read_spec

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
DEPTHS = {18: ("basic", [2, 2, 2, 2]), 50: ("bottleneck", [3, 4, 6, 3]), 101: ("bottleneck", [3, 4, 23, 3])}


@torch.no_grad()
def difference(query_difference, detector, theirs) -> float:
    # A square, because transformers orders the position embedding differently on other maps.
    images = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(5))
    ours, expected = detector.eval()(images), theirs.eval()(images)
    worst = query_difference((ours.logits, ours.boxes), (expected.logits, expected.pred_boxes))
    print(f"largest difference of outputs: {worst:.1e}, logits up to {expected.logits.abs().max():.1f}")
    return worst


def enliven(model) -> None:
    """Set norms to 1 and heads to random values; with those of transformers, all queries have the same score."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):  # norms
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and "n_points_scale" not in name:
                fan_in = tensor[0].numel() if tensor.ndim > 1 else 100
                tensor.normal_(std=fan_in**-0.5 * (0.2 if "sampling_offsets" in name else 1.0))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "depth", [18, pytest.param(50, marks=pytest.mark.slow), pytest.param(101, marks=pytest.mark.slow)]
)
def test_a_model_saved_by_transformers_gives_the_same_here(query_difference, tmp_path, depth, version):
    kind, blocks = DEPTHS[depth]
    widths = [64, 128, 256, 512] if depth == 18 else [256, 512, 1024, 2048]
    backbone = transformers.RTDetrResNetConfig(
        depths=blocks, hidden_sizes=widths, layer_type=kind, out_indices=[2, 3, 4]
    )
    config_class, model_class = {
        1: (transformers.RTDetrConfig, transformers.RTDetrForObjectDetection),
        2: (transformers.RTDetrV2Config, transformers.RTDetrV2ForObjectDetection),
    }[version]
    encoder = {"encoder_hidden_dim": 384, "encoder_ffn_dim": 2048, "decoder_in_channels": [384] * 3}
    config = config_class(
        backbone_config=backbone, encoder_in_channels=widths[1:], hidden_expansion=0.5 if depth == 18 else 1.0,
        decoder_layers=3 if depth == 18 else 6, **(encoder if depth == 101 else {}), num_labels=80,
    )  # fmt: skip
    reference = model_class(config)
    enliven(reference)
    reference.save_pretrained(tmp_path)
    detector = open_detector(str(tmp_path), read_spec(None)).detector
    assert difference(query_difference, detector, reference) < TOLERANCE


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("depth", [18, pytest.param(50, marks=pytest.mark.slow)])
def test_official_weights_give_the_same_here_and_in_transformers(query_difference, tmp_path, depth, version):
    shapes = official_shapes(version, depth, layers=3 if depth == 18 else 6, expansion=0.5 if depth == 18 else 1.0)
    torch.save({"ema": {"module": random_weights(shapes), "updates": 1}}, tmp_path / "official.pth")
    assert main(["convert", str(tmp_path / "official.pth"), str(tmp_path / "there")]) == 0
    model_class = transformers.RTDetrV2ForObjectDetection if version == 2 else transformers.RTDetrForObjectDetection
    reference = model_class.from_pretrained(tmp_path / "there")
    detector = open_detector(str(tmp_path / "official.pth"), read_spec(None)).detector
    assert difference(query_difference, detector, reference) < TOLERANCE
    assert read_detector(tmp_path / "there").meta["spec"]["model"]["backbone"] == f"resnet_{depth}d"
