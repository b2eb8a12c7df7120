"""RT-DETRv2's decoder options: points per level, discrete sampling, offset scale; a narrower decoder."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rtdetr_tool.errors import SpecError, UserError
from rtdetr_tool.families.rtdetr.model.decoder import RTDETRDecoder
from rtdetr_tool.formats.export_model import ExportModel
from rtdetr_tool.formats.onnx.export import export_graph
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.models.decoder_layer import DeformableAttention, points_per_level
from rtdetr_tool.spec import spec_from_dict
from rtdetr_tool.spec.model import ModelSpec

SMALL = ModelSpec(
    backbone="resnet_18",
    hidden_dim=16,
    nheads=2,
    feat_channels=[16, 16, 16],
    dim_feedforward=24,
    num_queries=8,
    dec_layers=2,
    dn_number=4,
)


@pytest.mark.parametrize(("points", "expected"), [(4, [4, 4, 4]), ([2], [2, 2, 2]), ((1, 2, 3), [1, 2, 3])])
def test_one_number_of_points_stands_for_all_levels(points, expected):
    assert points_per_level(points, 3) == expected


@pytest.mark.parametrize("points", [[1, 2], [], [2, 0, 2], 0])
def test_points_that_do_not_fit_the_levels_are_an_error(points):
    with pytest.raises(UserError, match=r"num_points: .* is invalid; expected one positive integer, or 3"):
        points_per_level(points, 3)


def test_each_level_starts_with_its_own_points_at_growing_distance():
    attention = DeformableAttention(16, num_heads=2, num_points=[1, 3])
    offsets = attention.sampling_offsets.bias.view(2, 4, 2)
    assert attention.sampling_offsets.out_features == 2 * 4 * 2 and attention.attention_weights.out_features == 2 * 4
    torch.testing.assert_close(offsets[0, :, 0], torch.tensor([1.0, 1.0, 2.0, 3.0]))
    torch.testing.assert_close(offsets[1, :, 0], -offsets[0, :, 0])


def test_an_offset_is_a_share_of_the_box_by_level(monkeypatch):
    """Offsets of 1: a level of P points samples at center + scale * size / P."""
    from rtdetr_tool.models import decoder_layer as module

    attention = DeformableAttention(4, num_heads=1, num_points=[1, 2], offset_scale=0.25)
    torch.nn.init.ones_(attention.sampling_offsets.bias)
    seen = []
    monkeypatch.setattr(module, "deformable_sample", lambda value, shapes, at, *_: seen.append(at) or value[:, :1])
    attention(torch.zeros(1, 1, 4), torch.tensor([[[0.5, 0.4, 0.2, 0.8]]]), torch.zeros(1, 5, 4), [(2, 2), (1, 1)])
    expected = torch.tensor([[0.55, 0.6], [0.525, 0.5], [0.525, 0.5]])
    torch.testing.assert_close(seen[0][0, 0, 0], expected)


def test_offsets_of_discrete_sampling_are_not_trained_and_everything_else_is(build, images, targets):
    detector = build(cross_attn_method="discrete", num_points=[1, 2, 1]).train()
    result = detector(images, targets)
    (
        result.layer_logits.sum()
        + result.layer_boxes.sum()
        + result.encoder_logits.sum()
        + result.encoder_boxes.sum()
        + result.denoising.logits.sum()
    ).backward()
    for name, parameter in detector.named_parameters():
        if "sampling_offsets" in name:
            assert not parameter.requires_grad and parameter.grad is None
        else:
            assert parameter.grad is not None, name


def test_nothing_more_is_stored_than_in_version_1():
    plain, other = (RTDETRDecoder([16], 3, 16, num_points=points, num_layers=1, num_heads=2) for points in (4, 3))
    assert set(plain.state_dict()) == set(other.state_dict())


def test_unequal_points_take_the_fast_way_on_the_cpu(build, images, monkeypatch):
    from rtdetr_tool.ops import deformable

    detector = build(num_points=[1, 4, 2]).eval()
    with torch.no_grad():
        fast = detector(images)
        monkeypatch.setattr(deformable, "sample_by_bags", deformable.sample_by_grid)
        slow = detector(images)
    torch.testing.assert_close(fast.boxes, slow.boxes, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [12, 17])
@pytest.mark.parametrize("sampling", [{"num_points": [1, 4, 2]}, {"cross_attn_method": "discrete", "num_points": 2}])
def test_the_graph_finds_what_torch_finds(build, opset, sampling):
    import onnxruntime

    model = ExportModel(build(**sampling)).eval()
    graph = export_graph(model, (64, 96), batch=None, opset=opset)
    operators = {node.op_type for node in graph.graph.node}
    assert ("GridSample" in operators) == (opset >= 16 and "cross_attn_method" not in sampling)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        inputs = torch.rand(batch, 3, 64, 96, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = model(inputs)
        for ours, reference in zip(session.run(None, {"inputs": inputs.numpy()}), expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(ours), reference, atol=1e-4, rtol=1e-4)


def test_the_spec_reaches_the_decoder():
    spec = dataclasses.replace(
        SMALL,
        num_points=[1, 2, 3],
        cross_attn_method="discrete",
        offset_scale=0.75,
        dec_hidden_dim=8,
        dec_dim_feedforward=40,
    )
    detector = build_detector(spec, 2)
    layer = detector.decoder.decoder.layers[1]
    assert layer.cross_attn.points == (1, 2, 3) and layer.cross_attn.discrete
    assert layer.cross_attn.offset_scale == 0.75
    assert layer.linear1.in_features == 8 and layer.linear1.out_features == 40
    assert detector.encoder.hidden_dim == 16 and detector.decoder.input_proj[0].conv.in_channels == 16
    with torch.no_grad():
        assert detector.eval()(torch.rand(1, 3, 64, 64)).boxes.shape == (1, 8, 4)


def test_the_official_r101_has_its_parameters():
    """RT-DETR-R101: encoder of 384 and 2048, decoder of 256 and 1024. Numbers from the official code's modules."""
    spec = ModelSpec(
        backbone="resnet_101d",
        hidden_dim=384,
        feat_channels=[384] * 3,
        dim_feedforward=2048,
        dec_hidden_dim=256,
        dec_dim_feedforward=1024,
    )
    with torch.device("meta"):
        detector = build_detector(spec, 80)
    counts = [sum(p.numel() for p in part.parameters()) for part in (detector.encoder, detector.decoder)]
    assert counts == [26_577_536, 7_564_812]
    assert detector.decoder.input_proj[0].conv.weight.shape == (256, 384, 1, 1)
    assert detector.encoder.encoder[0].layers[0].linear1.weight.shape == (2048, 384)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_points": [4, 4]}, r"model.num_points: \[4, 4\] has 2 items; expected 1, or as many as"),
        ({"num_points": [0]}, r"model.num_points\[0\]: 0 is invalid; .* at least 1"),
        ({"num_points": []}, r"model.num_points: \[\] has 0 items"),
        ({"cross_attn_method": "nearest"}, r"cross_attn_method: 'nearest' is invalid; expected one of default"),
        ({"offset_scale": 0}, r"model.offset_scale: 0 is invalid"),
        ({"dec_hidden_dim": 100}, r"model.dec_hidden_dim: 100 is invalid; expected a multiple of model.nheads"),
    ],
)
def test_wrong_options_are_named_with_what_is_right(change, message):
    with pytest.raises(SpecError, match=message):
        spec_from_dict({"model": change})
