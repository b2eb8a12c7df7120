"""FP16 graphs: converted and kept nodes with reasons, and a model that works only because of the audit."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.images import synthetic_images
from rtdetr_tool.formats.precision import audit_precision, emulate_half, parse_layers_precision, to_mixed_fp16
from rtdetr_tool.formats.precision.casting import half_nodes, write_half
from rtdetr_tool.formats.precision.cost import CostMeter
from rtdetr_tool.formats.precision.graph import Graph

IMAGES = synthetic_images(4, (64, 96)).numpy()
HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def run(model, images=IMAGES):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})


def signature(model):
    kinds = {value.name: value.type.tensor_type for value in (*model.graph.input, *model.graph.output)}
    return {name: (t.elem_type, [d.dim_param or d.dim_value for d in t.shape.dim]) for name, t in kinds.items()}


@pytest.fixture(scope="module")
def audit(steady_graph):
    return audit_precision(steady_graph, [IMAGES], images_for_cost=2)


@pytest.fixture(scope="module")
def mixed(steady_graph, audit):
    return to_mixed_fp16(steady_graph, audit)


def test_the_graph_is_valid_and_its_inputs_and_outputs_are_as_before(steady_graph, mixed):
    onnx.checker.check_model(mixed.model, full_check=True)
    assert signature(mixed.model) == signature(steady_graph)
    assert mixed.model.opset_import == steady_graph.opset_import


def test_metadata_survives(steady_graph):
    noted = onnx.ModelProto()
    noted.CopyFrom(steady_graph)
    onnx.helper.set_model_props(noted, {"names": "cat, dog"})
    assert {entry.key: entry.value for entry in to_mixed_fp16(noted).model.metadata_props} == {"names": "cat, dog"}


@pytest.mark.parametrize("batch", [1, 3])
def test_outputs_stay_near_those_of_the_fp32_graph(steady_graph, mixed, batch):
    before, after = run(steady_graph, IMAGES[:batch]), run(emulate_half(mixed.model), IMAGES[:batch])
    for expected, actual in zip(before, after, strict=True):
        assert 0 < np.median(np.abs(expected - actual)) < 0.003  # the median: ties may change the order of queries


def test_a_static_batch_works_and_is_filled_up():
    static = norm_graph(1.0, batch=3)
    images = np.random.default_rng(1).random((4, 3, 8, 8), np.float32)
    audit = audit_precision(static, iter([images]))
    assert audit.images == 6  # the second batch is padded with its only image
    assert run(to_mixed_fp16(static, audit).model, images[:3])[0].shape == (3, 3, 8, 8)


def test_most_weights_are_stored_in_half_precision(steady_graph, mixed):
    assert mixed.model.ByteSize() < 0.56 * steady_graph.ByteSize()
    assert mixed.converted > len(mixed.kept)


def test_each_tensor_is_cast_at_most_once_and_no_cast_follows_another(mixed):
    casts = [node for node in mixed.model.graph.node if node.op_type == "Cast" and node.name.startswith("precision/")]
    made = {name: node for node in mixed.model.graph.node for name in node.output}
    assert mixed.casts == len(casts) < 60
    assert max(Counter(node.input[0] for node in casts).values()) == 1
    assert not [node.name for node in casts if node.input[0] in made and made[node.input[0]] in casts]


def test_what_decides_boxes_and_queries_stays_in_fp32_with_its_reason_and_figures(steady_graph, mixed):
    reasons = {node.name: node.reason for node in mixed.kept}
    operators = Counter(node.op_type for node in mixed.kept)
    total = Counter(node.op_type for node in steady_graph.graph.node)
    for op_type in ("LayerNormalization", "Softmax", "GridSample", "Log"):
        assert operators[op_type] == total[op_type] > 0
    grid = next(node for node in mixed.kept if node.op_type == "GridSample")
    assert reasons[grid.name] == "role: sampling" and grid.max_abs > 0
    log = next(node for node in mixed.kept if node.op_type == "Div" and "underflow" in node.reason)
    assert log.smallest == pytest.approx(1e-5)  # the clipping of the inverse sigmoid
    selecting = [node for node in mixed.kept if node.reason == "role: selection"]
    assert {"MatMul", "ReduceMax"} <= {node.op_type for node in selecting}


def test_rules_add_to_and_overrule_what_the_audit_keeps(steady_graph, audit):
    conv = next(node.name for node in steady_graph.graph.node if node.op_type == "Conv")
    graph = to_mixed_fp16(steady_graph, audit, parse_layers_precision([f"{conv}:fp32", "Softmax:fp16"]))
    kept = {node.name: node for node in graph.kept}
    assert kept[conv].reason == f"layers_precision: {conv}:fp32"
    assert "Softmax" not in {node.op_type for node in graph.kept}
    weight = next(node for node in graph.model.graph.node if node.name == conv).input[1]
    assert next(t for t in graph.model.graph.initializer if t.name == weight).data_type == FLOAT


def test_fp32_for_all_others_leaves_only_the_named_layers(steady_graph, audit):
    graph = to_mixed_fp16(steady_graph, audit, parse_layers_precision(["*:fp32", "Conv:fp16"]))
    convolutions = sum(node.op_type == "Conv" for node in steady_graph.graph.node)
    assert convolutions <= graph.converted < convolutions + 60  # and nodes between them that only move values


def test_overruling_an_overflow_is_said(large_norm, large_audit):
    graph = to_mixed_fp16(large_norm, large_audit, parse_layers_precision(["*:fp16"]))
    assert any("nodes into FP16 with values out of range" in note for note in graph.notes)


def test_int8_for_a_layer_of_an_fp16_graph_is_refused(steady_graph):
    with pytest.raises(UserError, match=r"\*:int8 requires INT8 ranges"):
        to_mixed_fp16(steady_graph, None, parse_layers_precision(["*:int8"]))


def test_names_of_nodes_are_not_needed(steady_graph):
    mixed = to_mixed_fp16(steady_graph)
    bare = onnx.ModelProto()
    bare.CopyFrom(steady_graph)
    for node in bare.graph.node:
        node.ClearField("name")
    graph = to_mixed_fp16(bare)
    assert (graph.converted, graph.casts, len(graph.kept)) == (mixed.converted, mixed.casts, len(mixed.kept))
    assert len({node.name for node in graph.kept}) == len(graph.kept)
    for expected, actual in zip(run(emulate_half(mixed.model)), run(emulate_half(graph.model)), strict=True):
        np.testing.assert_array_equal(expected, actual)


def test_the_account_is_plain_values(mixed, audit):
    json.dumps([mixed.to_dict(), audit.to_dict()])
    assert mixed.to_dict()["nodes_fp32"] == len(mixed.kept)


# Models that plain FP16 destroys


def plain_half(model):
    """Every node in FP16, as in simple converters."""
    graph = Graph(model)
    return write_half(graph, half_nodes(graph, ())).model


def scaled(model, weight, factor):
    """The model with the only constant input of the node `weight` multiplied by a factor."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name in weight:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))
    return result


@pytest.fixture(scope="module")
def large_norm(steady_graph):
    """The same detector with values a million times as large before the norm of the query selection."""
    nodes = {node.output[0]: node for node in steady_graph.graph.node}
    norm = next(n for n in steady_graph.graph.node if n.op_type == "LayerNormalization" and "enc_output" in n.name)
    add = nodes[norm.input[0]]
    product = next(nodes[name] for name in add.input if name in nodes)
    constants = {tensor.name for tensor in steady_graph.graph.initializer}
    return scaled(steady_graph, {*add.input, *product.input} & constants, 1e6)


@pytest.fixture(scope="module")
def large_audit(large_norm):
    return audit_precision(large_norm, [IMAGES], images_for_cost=2)


def test_the_audit_saves_a_detector_that_plain_fp16_destroys(steady_graph, large_norm, large_audit):
    meter = CostMeter(large_norm, list(IMAGES[:2, None]))
    assert meter.cost(steady_graph) < 1e-3  # a layer norm removes the factor
    assert meter.cost(plain_half(large_norm)) > 0.5
    graph = to_mixed_fp16(large_norm, large_audit)
    assert meter.cost(graph.model) < 0.02
    kept = [node for node in graph.kept if node.reason.startswith("overflow")]
    assert {"MatMul", "Add", "LayerNormalization"} <= {node.op_type for node in kept}
    assert max(node.max_abs for node in kept) > 65504
    assert large_audit.cost_all_half > 0.5 and large_audit.cost_kept < 0.02


def test_only_images_show_an_overflow_of_activations(large_norm):
    blind = to_mixed_fp16(large_norm)
    assert not [node for node in blind.kept if "output up to" in node.reason]


def norm_graph(scale, batch="batch"):
    """A decomposed layer norm, as from exporters before operator set 17; inputs [B, 3, 8, 8]."""
    make = helper.make_node
    nodes = [
        make("Mul", ["inputs", "scale"], ["x"], name="scaled"),
        make("ReduceMean", ["x"], ["mean"], axes=[3], name="mean"),
        make("Sub", ["x", "mean"], ["centred"], name="centred"),
        make("Pow", ["centred", "two"], ["squares"], name="squares"),
        make("ReduceMean", ["squares"], ["variance"], axes=[3], name="variance"),
        make("Add", ["variance", "eps"], ["safe"], name="safe"),
        make("Sqrt", ["safe"], ["deviation"], name="deviation"),
        make("Div", ["centred", "deviation"], ["normed"], name="normed"),
        make("MatMul", ["normed", "weight"], ["result"], name="linear"),
    ]
    rng = np.random.default_rng(0)
    weights = {"scale": np.float32(scale), "two": np.float32(2), "eps": np.float32(1e-5)}
    weights["weight"] = rng.normal(size=(8, 8)).astype(np.float32)
    graph = helper.make_graph(
        nodes, "norm", [helper.make_tensor_value_info("inputs", FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("result", FLOAT, [batch, 3, 8, 8])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)


def test_a_norm_that_is_spelled_out_is_recognised_and_its_square_may_overflow():
    model, images = norm_graph(2000.0), np.random.default_rng(1).random((2, 3, 8, 8), np.float32)
    expected = run(model, images)[0]
    assert np.abs(run(emulate_half(plain_half(model)), images)[0] - expected).max() > 0.5  # 500 squared is above 65504
    mixed = to_mixed_fp16(model, audit_precision(model, [images]))
    assert np.abs(run(emulate_half(mixed.model), images)[0] - expected).max() < 0.02
    kept = {node.name: node.reason for node in mixed.kept}
    assert set(kept) >= {"mean", "centred", "squares", "variance", "safe", "deviation", "normed"}
    assert "overflow" in kept["squares"] and kept["mean"] == "role: normalisation"
    assert "linear" not in kept


def test_tensors_that_a_branch_reads_keep_their_name_in_fp32():
    def branch(name, operator):
        out = helper.make_tensor_value_info(name, FLOAT, None)
        return helper.make_graph([helper.make_node(operator, ["y"], [name])], name, [], [out])

    weight = np.random.default_rng(0).normal(size=(4, 3, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["inputs", "weight"], ["y"], name="conv"),
        helper.make_node("If", ["yes"], ["out"], "if", then_branch=branch("a", "Neg"), else_branch=branch("b", "Abs")),
    ]
    graph = helper.make_graph(
        nodes, "branches", [helper.make_tensor_value_info("inputs", FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("out", FLOAT, None)],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.array(True), "yes")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    images = np.random.default_rng(1).random((1, 3, 8, 8), np.float32)
    mixed = to_mixed_fp16(model)
    assert mixed.converted == 1 and mixed.casts == 2
    np.testing.assert_allclose(run(emulate_half(mixed.model), images)[0], run(model, images)[0], atol=5e-3)
