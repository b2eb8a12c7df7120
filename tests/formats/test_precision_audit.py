"""The precision audit: ranges, resolution, costs."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.images import synthetic_images
from rtdetr_tool.formats.precision import audit_precision
from rtdetr_tool.formats.precision.casting import write_half
from rtdetr_tool.formats.precision.cost import CostMeter, detection_difference, detections, output_difference
from rtdetr_tool.formats.precision.gates import GatedGraph
from rtdetr_tool.formats.precision.graph import Graph
from rtdetr_tool.formats.precision.magnitudes import TensorRange
from rtdetr_tool.formats.precision.observe import Observer, open_session

IMAGES = synthetic_images(4, (64, 96)).numpy()


def small_graph(nodes, weights, size=(8, 8)):
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, *size])] for name in ("inputs", "result")
    ]
    graph = helper.make_graph(nodes, "small", *ends, [numpy_helper.from_array(v, k) for k, v in weights.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# Ranges


def test_a_range_counts_what_half_precision_makes_of_each_value():
    seen = TensorRange()
    seen.add(np.array([0.0, 1e-8, -3e-8, 2.0, np.inf], np.float32))
    seen.add(np.array([[-70000.0, 1.0]], np.float32))
    assert seen.max_abs == 70000.0
    assert seen.smallest == pytest.approx(1e-8)
    assert (seen.values, seen.flushed, seen.non_finite) == (6, 1, 1)  # 3e-8 is nearer to 6e-8 than to 0
    assert seen.flushed_share == pytest.approx(1 / 6)


def test_the_error_of_a_range_is_that_of_numpys_float16():
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    seen = TensorRange()
    seen.add(values[:300])
    seen.add(values[300:])
    lost = values - values.astype(np.float16).astype(np.float32)
    assert seen.half_error == pytest.approx(np.linalg.norm(lost) / np.linalg.norm(values), rel=1e-4)


def test_an_empty_or_zero_tensor_has_no_range():
    seen = TensorRange()
    seen.add(np.zeros((2, 0), np.float32))
    seen.add(np.zeros(3, np.float32))
    assert (seen.max_abs, seen.half_error, seen.flushed_share) == (0.0, 0.0, 0.0)


def test_tensors_are_looked_at_in_parts_where_memory_is_short():
    names = [f"t{i}" for i in range(4)]
    nodes = [helper.make_node("Neg", [a], [b]) for a, b in zip(["inputs", *names], [*names, "result"], strict=True)]
    model = small_graph(nodes, {})
    one, parts = Observer(model, names), Observer(model, names, memory=2 * 3 * 8 * 8 * 4)
    assert [len(part) for part in one.parts] == [4] and [len(part) for part in parts.parts] == [2, 2]
    image = np.ones((1, 3, 8, 8), np.float32)
    for (name, value), (other, same) in zip(one.observe(image), parts.observe(image), strict=True):
        assert name == other
        np.testing.assert_array_equal(value, same)


# Reasons


def test_a_denominator_that_half_precision_flushes_is_an_underflow():
    nodes = [
        helper.make_node("Mul", ["inputs", "tiny"], ["small"], name="scale"),
        helper.make_node("Div", ["inputs", "small"], ["result"], name="divide"),
    ]
    model = small_graph(nodes, {"tiny": np.float32(1e-6)})
    rows = audit_precision(model, [np.full((1, 3, 8, 8), 0.5, np.float32)]).nodes
    assert "underflow: Div of values down to 5.0e-07, FP16 is exact from 6.1e-05" in rows["divide"].reasons
    assert any(reason.startswith("resolution: constant loses") for reason in rows["scale"].reasons)  # 1e-6 alone


def test_a_margin_is_kept_below_the_end_of_half_precision():
    model = small_graph([helper.make_node("Mul", ["inputs", "k"], ["result"], name="scale")], {"k": np.float32(20000)})
    above, below = (
        audit_precision(model, [np.full((1, 3, 8, 8), value, np.float32)]).nodes["scale"] for value in (1.0, 0.5)
    )
    assert above.reasons == ["overflow: output up to 2e+04, the FP16 maximum is 65504"]
    assert below.reasons == [] and below.max_abs == 20000


def test_images_come_from_any_iterable_once_and_in_any_batches():
    model = small_graph([helper.make_node("Mul", ["inputs", "k"], ["result"], name="scale")], {"k": np.float32(0.5)})
    images = np.random.default_rng(0).random((5, 3, 8, 8), np.float32)
    whole = audit_precision(model, [images])
    parts = audit_precision(model, (part for part in (images[:2], images[2:])))
    assert whole.images == parts.images == 5
    assert whole.nodes["scale"].max_abs == parts.nodes["scale"].max_abs == images.max()


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ([], "requires images"),
        ([np.zeros((1, 3, 9, 8), np.float32)], r"Calibration images have the shape \[1, 3, 9, 8\]; the graph expects"),
        ([np.zeros((3, 8, 8), np.float32)], r"Calibration images have the shape \[3, 8, 8\]"),
    ],
)
def test_images_that_do_not_fit_are_refused(feeds, message):
    model = small_graph([helper.make_node("Neg", ["inputs"], ["result"])], {})
    with pytest.raises(UserError, match=message):
        audit_precision(model, feeds)


# Costs


def one_detection(score, box, label=0, classes=2):
    logits = np.full((1, classes), -20.0)
    logits[0, label] = np.log(score / (1 - score))
    return detections(logits, np.array([box], np.float32))


def test_detections_cost_what_their_scores_and_boxes_differ():
    box = [0.5, 0.5, 0.2, 0.2]
    assert detection_difference(one_detection(0.8, box), one_detection(0.8, box)) == pytest.approx(0, abs=1e-9)
    assert detection_difference(one_detection(0.8, box), one_detection(0.6, box)) == pytest.approx(0.2)
    shifted = [0.6, 0.5, 0.2, 0.2]  # half of the box: overlap 1/3
    assert detection_difference(one_detection(0.8, box), one_detection(0.8, shifted)) == pytest.approx(2 / 3, abs=1e-6)
    assert detection_difference(one_detection(0.8, box), one_detection(0.8, box, label=1)) == 1.0
    assert detection_difference(one_detection(0.8, box), one_detection(0.01, box)) == 1.0


def test_the_order_of_queries_costs_nothing_and_nan_costs_everything():
    rng = np.random.default_rng(0)
    logits, boxes = rng.normal(size=(1, 20, 3)).astype(np.float32), rng.random((1, 20, 4)).astype(np.float32)
    order = rng.permutation(20)
    before = {"pred_logits": logits, "pred_boxes": boxes}
    after = {"pred_logits": logits[:, order], "pred_boxes": boxes[:, order]}
    assert output_difference(before, after) == pytest.approx(0, abs=1e-9)
    assert output_difference(before, {"pred_logits": np.full_like(logits, np.nan), "pred_boxes": boxes}) == 1.0


def test_other_outputs_cost_their_relative_difference():
    value = np.array([1.0, -2.0, 4.0], np.float32)
    assert output_difference({"y": value}, {"y": value + 0.4}) == pytest.approx(0.1)
    assert output_difference({"y": value}, {"y": np.full(3, np.inf, np.float32)}) == 1.0


@pytest.mark.slow
def test_gates_cost_the_same_as_the_graph_with_casts(steady_graph):
    graph = Graph(steady_graph)
    meter = CostMeter(graph.model, list(IMAGES[:2, None]))
    groups = {"norms": set(), "others": set()}
    for node in graph.nodes:
        if any(graph.half_slots(node)):
            groups["norms" if node.op_type == "LayerNormalization" else "others"].add(node.name)
    gated = GatedGraph(graph, groups)
    session = open_session(gated.model)
    assert meter.measure(session, gated.feed()) == pytest.approx(0, abs=1e-6)
    for chosen in (["norms"], ["norms", "others"]):
        half = set().union(*(groups[name] for name in chosen))
        expected = meter.cost(write_half(graph, half).model)
        assert expected > 1e-4
        assert meter.measure(session, gated.feed(*chosen)) == pytest.approx(expected, rel=0.25)
