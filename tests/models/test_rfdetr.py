from __future__ import annotations

import io

import pytest
import torch

from rtdetr_tool.catalog import RFDETR_VARIANTS
from rtdetr_tool.errors import UserError
from rtdetr_tool.families.rfdetr.model.queries import QuerySelection, refine
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops.anchors import square_anchors
from rtdetr_tool.ops.position import sine_of_boxes
from rtdetr_tool.ops.structures import Predictions
from rtdetr_tool.spec import ModelSpec
from tests.models.rfdetr_parts import CLASSES, GROUPS, QUERIES, tiny_rfdetr


def images(height=48, width=64, batch=2):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(3))


def largest(first, second) -> float:
    pairs = ((first.logits, second.logits), (first.boxes, second.boxes))
    return max((a - b).abs().max().item() for a, b in pairs)


@pytest.mark.parametrize("variant", RFDETR_VARIANTS)
def test_a_variant_has_the_published_number_of_parameters(variant):
    with torch.device("meta"):
        detector = build_detector(ModelSpec(arch="rfdetr", rfdetr=RfdetrSpec(variant=variant)), 91)
    assert sum(parameter.numel() for parameter in detector.parameters()) == RFDETR_VARIANTS[variant].parameters


def test_outside_training_there_is_one_group_and_the_last_layer_only():
    result = tiny_rfdetr().eval()(images())
    assert result.logits.shape == (2, QUERIES, CLASSES) and result.boxes.shape == (2, QUERIES, 4)
    assert type(result) is Predictions


def test_training_gives_every_group_layer_and_the_proposals():
    result = tiny_rfdetr().train()(images())
    count = GROUPS * QUERIES
    assert result.layer_logits.shape == (3, 2, count, CLASSES) and result.layer_boxes.shape == (3, 2, count, 4)
    assert result.encoder_logits.shape == (2, count, CLASSES) and result.encoder_boxes.shape == (2, count, 4)
    assert torch.equal(result.logits, result.layer_logits[-1]) and torch.equal(result.boxes, result.layer_boxes[-1])


def test_the_first_group_of_training_is_what_inference_sees():
    detector, inputs = tiny_rfdetr(), images()
    with torch.no_grad():
        trained, used = detector.train()(inputs), detector.eval()(inputs)
    torch.testing.assert_close(trained.logits[:, :QUERIES], used.logits)
    torch.testing.assert_close(trained.boxes[:, :QUERIES], used.boxes)


def test_groups_do_not_see_one_another():
    detector, inputs = tiny_rfdetr().train(), images()
    before = detector(inputs).logits
    with torch.no_grad():
        detector.decoder.query_feat.weight[QUERIES : 2 * QUERIES] += 1.0
    after = detector(inputs).logits
    changed = (before - after).abs().amax((0, 2)) > 1e-6
    assert changed[QUERIES : 2 * QUERIES].all() and not changed[:QUERIES].any() and not changed[2 * QUERIES :].any()


@pytest.mark.parametrize("lite", [True, False])
@pytest.mark.parametrize("bbox_reparam", [True, False])
def test_with_fewer_tokens_than_queries_the_rest_starts_from_learned_places_in_each_group(lite, bbox_reparam):
    detector = tiny_rfdetr(num_queries=20, bbox_reparam=bbox_reparam, lite_refpoint_refine=lite)
    inputs = images(32, 32)  # 16 tokens
    with torch.no_grad():
        trained, used = detector.train()(inputs), detector.eval()(inputs)
    assert used.logits.shape == (2, 20, CLASSES)
    assert trained.encoder_logits.shape == (2, GROUPS * 16, CLASSES)
    torch.testing.assert_close(trained.logits[:, :20], used.logits)
    torch.testing.assert_close(trained.boxes[:, :20], used.boxes)


def test_references_are_fixed_with_lite_refpoint_refine_only():
    inputs = images()
    boxes = {}
    for lite in (True, False):
        detector = tiny_rfdetr(lite_refpoint_refine=lite).train()
        torch.nn.init.zeros_(detector.decoder.bbox_embed.layers[-1].weight)
        torch.nn.init.constant_(detector.decoder.bbox_embed.layers[-1].bias, 0.1)
        boxes[lite] = detector(inputs).layer_boxes[..., 2:]
    torch.testing.assert_close(boxes[True][0], boxes[True][2])
    torch.testing.assert_close(boxes[False][2], boxes[False][0] * torch.tensor(0.2).exp())


def test_a_box_moves_by_shares_of_its_reference():
    reference, delta = torch.tensor([0.5, 0.4, 0.2, 0.1]), torch.tensor([1.0, -0.5, 0.0, 2.0])
    expected = torch.tensor([0.7, 0.35, 0.2, 0.1 * torch.tensor(2.0).exp()])
    torch.testing.assert_close(refine(reference, delta, bbox_reparam=True), expected)
    torch.testing.assert_close(refine(reference, delta, bbox_reparam=False), reference + delta)


def test_proposals_are_squares_at_the_centres_and_double_with_each_level():
    proposals, _ = square_anchors([(1, 2), (1, 1)])
    expected = [[0.25, 0.5, 0.05, 0.05], [0.75, 0.5, 0.05, 0.05], [0.5, 0.5, 0.1, 0.1]]
    torch.testing.assert_close(proposals, torch.tensor([expected]))


def test_proposals_at_the_margin_are_not_used():
    values, valid = QuerySelection(4, 2, 1, bbox_reparam=True).proposals([(1, 60)], torch.device("cpu"))
    assert valid[0, :, 0].tolist() == [False] + [True] * 58 + [False]
    assert values[0, 0].tolist() == [0.0] * 4


def test_the_embedding_of_a_box_has_y_before_x():
    box = torch.tensor([[0.25, 0.5, 0.0, 1.0]])
    embedded = sine_of_boxes(box, 4)  # [1, 16]: four numbers for y, x, w, h; the second pair has period 100
    y, x, w, _ = embedded[0].split(4)
    torch.testing.assert_close(y[:2], torch.tensor([0.0, -1.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(x[:2], torch.tensor([1.0, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(x[2], torch.tensor(torch.pi / 200).sin())
    torch.testing.assert_close(w, torch.tensor([0.0, 1.0, 0.0, 1.0]))


@pytest.mark.parametrize("levels", [("P4",), ("P3", "P5"), ("P3", "P4", "P5")])
@pytest.mark.parametrize("registers", [0, 2])
def test_a_deployed_copy_gives_the_same_and_has_one_group(levels, registers):
    detector = tiny_rfdetr(levels, backbone={"num_registers": registers}).eval()
    lean = detector.deploy()
    for inputs in (images(), images(48, 48), images(48, 48)):  # the last one from its cache
        with torch.no_grad():
            assert largest(detector(inputs), lean(inputs)) < 1e-5
    sizes = [sum(p.numel() for p in model.parameters()) for model in (detector, lean)]
    surplus = sum(
        p.numel() for name, p in detector.named_parameters() if ".enc_o" in name and name.split(".")[2] != "0"
    ) + (GROUPS - 1) * QUERIES * (4 + 16)
    assert sizes[0] - sizes[1] >= surplus
    assert detector.decoder.groups == GROUPS and not any(p.requires_grad for p in lean.parameters())


def test_every_trained_parameter_has_a_gradient():
    detector = tiny_rfdetr(("P3", "P4")).train()
    result = detector(images())
    total = sum(t.sum() for t in (result.layer_logits, result.layer_boxes, result.encoder_logits, result.encoder_boxes))
    total.backward()
    named = list(detector.named_parameters())
    assert [name for name, p in named if p.requires_grad and p.grad is None] == []
    frozen = {name.split(".")[1] + "." + name.split(".")[2] if "blocks" in name else name.split(".")[1]
              for name, p in named if not p.requires_grad}  # fmt: skip
    assert frozen == {"mask_token", "blocks.3"}  # they are not used


@pytest.mark.parametrize("size", [(50, 64), (48, 40)])
def test_a_wrong_size_is_refused_with_the_nearest_good_ones(size):
    with pytest.raises(UserError, match=r"multiples of 16 .*nearest: 48( or 64)? x (64|32 or 48)"):
        tiny_rfdetr().eval()(images(*size))


def test_a_batch_that_is_a_list_of_one_gives_the_same_as_in_a_larger_batch():
    detector, inputs = tiny_rfdetr().eval(), images(batch=3)
    with torch.no_grad():
        together, alone = detector(inputs), detector(inputs[1:2])
    torch.testing.assert_close(together.logits[1:2], alone.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("levels", [("P4",), pytest.param(("P3", "P5"), marks=pytest.mark.slow)])
def test_onnxruntime_gives_the_same_at_every_batch_size(levels):
    onnxruntime = pytest.importorskip("onnxruntime")
    from rtdetr_tool.formats.export_model import ExportModel
    from rtdetr_tool.formats.onnx.export import export_graph

    detector = tiny_rfdetr(levels).eval()
    graph = export_graph(ExportModel(detector), (48, 64), batch=None, opset=17)
    file = io.BytesIO(graph.SerializeToString())
    session = onnxruntime.InferenceSession(file.getvalue())
    for batch in (1, 2, 5):
        inputs = images(batch=batch)
        logits, boxes = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
        with torch.no_grad():
            expected = detector(inputs)
        assert (torch.from_numpy(logits) - expected.logits).abs().max() < 1e-4
        assert (torch.from_numpy(boxes) - expected.boxes).abs().max() < 1e-4
    assert not {node.op_type for node in graph.graph.node} & {"Resize", "If", "Loop", "ScatterND"}


def test_freezing_the_backbone_keeps_it_out_of_training():
    detector = build_detector(ModelSpec(arch="rfdetr", train_backbone=False, rfdetr=RfdetrSpec(drop_path=0.2)), 3)
    assert not any(p.requires_grad for p in detector.backbone.parameters())
    assert detector.decoder.training and not detector.train().backbone.training
