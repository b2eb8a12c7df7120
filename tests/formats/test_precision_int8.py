"""INT8 graphs: positions of Q/DQ nodes, their ranges, and the calibration cache."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.export_model import ExportModel
from rtdetr_tool.formats.images import synthetic_images
from rtdetr_tool.formats.onnx.export import export_graph
from rtdetr_tool.formats.precision import calibration, emulate_half, parse_layers_precision, scoring_options, to_int8
from rtdetr_tool.formats.precision.cost import CostMeter
from rtdetr_tool.formats.precision.ranges import METHODS, Histogram, by_entropy, by_percentile, by_squared_error

IMAGES = synthetic_images(4, (64, 96)).numpy()


@pytest.fixture(scope="module", autouse=True)
def generous():
    """Tolerate the higher cost of an untrained detector; excluding nodes from INT8 has a separate test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "TOLERATED_COST", 1.0)
        yield


@pytest.fixture(scope="module")
def cached(steady_graph, tmp_path_factory):
    """The INT8 graph of the detector and its cache file."""
    file = tmp_path_factory.mktemp("cache") / "ranges.json"
    return to_int8(steady_graph, [IMAGES], cache_file=file), file


@pytest.fixture(scope="module")
def quantised(cached):
    return cached[0]


class Wiring:
    """Producers and readers of a graph's tensors."""

    def __init__(self, model):
        self.nodes = list(model.graph.node)
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}

    def of(self, *operators):
        return [node for node in self.nodes if node.op_type in operators]


def run(model, images=IMAGES):
    session = onnxruntime.InferenceSession(model.SerializeToString(), scoring_options(), ["CPUExecutionProvider"])
    return session.run(None, {"inputs": images})


# Positions of Q/DQ nodes


def test_convolutions_and_linear_layers_read_quantised_values_directly(quantised, steady_graph):
    wiring = Wiring(quantised.model)
    quantised_nodes = [
        node
        for node in wiring.of("Conv", "MatMul", "Gemm")
        if all(wiring.maker.get(name, node).op_type == "DequantizeLinear" for name in node.input[:2])
    ]
    convolutions = sum(node.op_type == "Conv" for node in steady_graph.graph.node)
    assert Counter(node.op_type for node in quantised_nodes)["Conv"] == convolutions
    assert len(quantised_nodes) == quantised.quantized > convolutions
    assert not [n for n in quantised_nodes if any("quantised" in name for name in n.input[2:])]  # biases are kept


def test_scales_are_symmetric_and_per_output_channel_for_weights(quantised):
    wiring = Wiring(quantised.model)
    for node in wiring.of("QuantizeLinear", "DequantizeLinear"):
        assert wiring.weights[node.input[2]].dtype == np.int8 and not wiring.weights[node.input[2]].any()
    for conv in wiring.of("Conv"):
        data, weight = (wiring.maker[name] for name in conv.input[:2])
        whole = wiring.weights[weight.input[0]]
        assert wiring.weights[weight.input[1]].shape == (len(whole),) and wiring.weights[data.input[1]].shape == ()
        assert whole.dtype == np.int8 and whole.min() >= -127
        largest = np.abs(whole.reshape(len(whole), -1)).max(1)
        assert (largest >= 126).all() or not whole.any()  # every channel uses its range


def test_weights_come_back_within_half_a_step(quantised, steady_graph):
    wiring, before = Wiring(quantised.model), Wiring(steady_graph)
    conv = wiring.of("Conv")[3]
    weight = wiring.maker[conv.input[1]]
    step = wiring.weights[weight.input[1]].astype(np.float32).reshape(-1, 1, 1, 1)
    original = before.weights[next(node for node in before.nodes if node.name == conv.name).input[1]]
    lost = np.abs(wiring.weights[weight.input[0]] * step - original)
    assert lost.max() > 0 and (lost <= step * 0.51).all()


def test_the_other_input_of_a_residual_sum_is_quantised(quantised):
    wiring = Wiring(quantised.model)
    sums = [
        [wiring.maker[name].op_type for name in node.input]
        for node in wiring.of("Add")
        if "backbone" in node.name and all(name in wiring.maker for name in node.input)
    ]
    assert len(sums) == 8 and all(sorted(makers) == ["Conv", "DequantizeLinear"] for makers in sums)


def test_the_rest_is_fp16_where_it_can_be_and_fp32_where_it_must(quantised):
    wiring = Wiring(quantised.model)
    scales = {wiring.weights[wiring.maker[conv.input[0]].input[1]].dtype for conv in wiring.of("Conv")}
    assert scales == {np.dtype(np.float16)}
    assert quantised.converted > 50
    assert {"LayerNormalization", "Softmax", "GridSample"} <= {node.op_type for node in quantised.kept}
    casts = [node for node in wiring.of("Cast") if node.name.startswith("precision/")]
    assert not [node for node in casts if wiring.maker.get(node.input[0], node).op_type == "DequantizeLinear"]


def test_the_graph_is_valid_smaller_and_near_the_fp32_graph(quantised, steady_graph):
    onnx.checker.check_model(quantised.model, full_check=True)
    assert quantised.model.ByteSize() < 0.3 * steady_graph.ByteSize()
    meter = CostMeter(steady_graph, list(IMAGES[:, None]))
    assert 0.0 < meter.cost(quantised.model) < 0.15
    assert [result.shape[0] for result in run(emulate_half(quantised.model), IMAGES[:3])] == [3, 3]
    assert {v.type.tensor_type.elem_type for v in (*quantised.model.graph.input, *quantised.model.graph.output)} == {1}


def test_a_raised_operator_set_is_said(quantised, steady_graph, cached):
    assert quantised.model.opset_import[0].version == 19
    assert quantised.notes == ["converted operator set 17 to 19, which INT8 with FP16 requires"]
    full = to_int8(steady_graph, (), cache_file=cached[1], half=False)
    assert full.model.opset_import[0].version == 17 and full.notes == [] and full.casts == 0
    assert not [tensor for tensor in full.model.graph.initializer if tensor.data_type == TensorProto.FLOAT16]


def test_rules_leave_layers_out_of_int8(steady_graph, cached):
    rules = parse_layers_precision(["/detector/backbone/*:fp16", "*/lateral_convs.0/*:fp32"])
    graph = to_int8(steady_graph, (), rules, cached[1])
    reasons = {node.name: (node.precision, node.reason) for node in graph.kept if node.op_type == "Conv"}
    backbone = [name for name in reasons if "backbone" in name]
    assert len(backbone) == 20
    assert {reasons[name] for name in backbone} == {("fp16", "layers_precision: /detector/backbone/*:fp16")}
    assert reasons["/detector/encoder/lateral_convs.0/conv/Conv"][0] == "fp32"
    only = to_int8(steady_graph, (), parse_layers_precision(["*:fp16", "/detector/backbone/*:int8"]), cached[1])
    assert only.quantized == 20


@pytest.mark.parametrize(
    ("entry", "message"),
    [("Softmax:int8", "'Softmax:int8' matches no layer that can run in INT8"), ("*:fp32", "no convolution or linear")],
)
def test_rules_that_leave_nothing_for_int8_are_refused(steady_graph, entry, message):
    with pytest.raises(UserError, match=message):
        to_int8(steady_graph, [IMAGES], parse_layers_precision([entry]))


@pytest.mark.slow
@pytest.mark.parametrize("half", [True, False])
def test_a_graph_of_operator_set_12_is_raised(steady_detector, half):
    """The example in TAO's documentation exports with set 12."""
    graph = export_graph(ExportModel(steady_detector).eval(), (64, 96), None, 12)
    quantised = to_int8(graph, [IMAGES[:1]], half=half)
    raised, what = (19, "INT8 with FP16") if half else (13, "INT8 per channel")
    assert quantised.notes == [f"converted operator set 12 to {raised}, which {what} requires"]
    assert quantised.model.opset_import[0].version == raised
    onnx.checker.check_model(quantised.model, full_check=True)
    assert quantised.quantized > 20
    assert CostMeter(graph, [IMAGES[:1]]).cost(quantised.model) < 0.15


def test_a_graph_that_cannot_be_raised_is_refused(steady_graph):
    old = onnx.ModelProto()
    old.CopyFrom(steady_graph)
    old.opset_import[0].version = 12
    with pytest.raises(UserError, match="requires ONNX operator set 19, but the graph has 12 and cannot be converted"):
        to_int8(old, [IMAGES])


# Ranges


def histogram_of(*values):
    histogram = Histogram()
    for value in values:
        histogram.add(np.asarray(value, np.float32))
    return histogram


def test_a_histogram_grows_with_its_values_and_loses_none():
    histogram = histogram_of([0.5, -1.0, 0.25], np.zeros(4), [3.0, np.inf])
    assert histogram.limit == 4.0 and histogram.max_abs == 3.0
    counts = {index: int(count) for index, count in enumerate(histogram.counts) if count}
    assert counts == {0: 4, 128: 1, 256: 1, 511: 1, 1536: 1}  # 1.0 was in the last bin before the limit doubled


def test_zeros_before_the_first_value_are_counted():
    histogram = histogram_of(np.zeros(5), [2.0])
    assert histogram.counts[0] == 5 and histogram.counts.sum() == 6


def test_a_percentile_leaves_out_the_tail():
    values = np.concatenate([np.linspace(0, 1, 999), [100.0]])
    assert by_percentile(histogram_of(values), 99.8) == pytest.approx(1.0, abs=0.06)
    assert by_percentile(histogram_of(values), 100.0) == 100.0


def test_the_squared_error_weighs_clipping_against_rounding():
    rng = np.random.default_rng(0)
    normal = rng.normal(size=100_000)
    limit = by_squared_error(histogram_of(normal))
    errors = {}
    for tried in (limit, 0.6 * limit, 1.5 * limit):
        step = tried / 127
        errors[tried] = np.mean((normal - np.clip(np.rint(normal / step), -127, 127) * step) ** 2)
    assert min(errors, key=errors.get) == limit


def test_entropy_keeps_a_uniform_range_and_cuts_a_lone_outlier():
    rng = np.random.default_rng(0)
    uniform = rng.uniform(0, 1, 100_000)
    assert by_entropy(histogram_of(uniform)) > 0.95
    assert by_entropy(histogram_of(rng.normal(size=100_000), [40.0])) < 10


def test_the_cheapest_method_is_taken_and_all_costs_are_told(quantised):
    account = quantised.calibration
    assert set(account["costs"]) == set(METHODS)
    assert account["method"] == min(account["costs"], key=account["costs"].get)
    assert account["pictures"] == 4 and account["reused_cache"] is False


def test_what_costs_too_much_stays_out_of_int8_and_the_cache_remembers_it(tmp_path, monkeypatch):
    """Two branches; the input of one has tiny and huge values, which 8 bits cannot represent."""
    rng = np.random.default_rng(0)
    make = onnx.helper.make_node
    weights = {f"weight {i}": rng.normal(size=(4, 3, 1, 1)).astype(np.float32) for i in range(2)}
    weights |= {"steep": np.float32(12), "first": np.float32(1e-5)}
    nodes = [
        make("Conv", ["inputs", "weight 0"], ["even"], name="even"),
        make("Pow", ["inputs", "steep"], ["wide"], name="power"),
        make("Conv", ["wide", "weight 1"], ["uneven"], name="uneven"),
        make("Abs", ["uneven"], ["size"]),
        make("Add", ["size", "first"], ["above"]),
        make("Log", ["above"], ["logarithm"]),
        make("Add", ["even", "logarithm"], ["result"]),
    ]
    ends = [[onnx.helper.make_tensor_value_info(n, 1, ["b", c, 8, 8])] for n, c in (("inputs", 3), ("result", 4))]
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = onnx.helper.make_graph(nodes, "branches", *ends, stored)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)
    monkeypatch.setattr(calibration, "TOLERATED_COST", 0.02)
    images, file = [rng.random((4, 3, 8, 8), np.float32)], tmp_path / "ranges.json"
    result = to_int8(model, images, cache_file=file)
    assert result.quantized == 1
    spared = {node.name: node for node in result.kept if node.op_type == "Conv"}
    assert set(spared) == {"uneven"} and spared["uneven"].reason.startswith("cost: quantizing uneven to uneven alone")
    assert to_int8(model, (), cache_file=file).model == result.model


# The cache


def test_the_cache_gives_the_same_graph_without_images(steady_graph, cached):
    quantised, file = cached
    again = to_int8(steady_graph, (), cache_file=file)
    assert again.model.SerializeToString(deterministic=True) == quantised.model.SerializeToString(deterministic=True)
    assert again.calibration == quantised.calibration | {"reused_cache": True}
    data = json.loads(file.read_text())
    assert data["ranges"]["inputs"] == pytest.approx(1.0, abs=0.01) and data["pictures"] == 4


@pytest.mark.slow
def test_calibrating_twice_gives_the_same_graph(steady_graph, quantised):
    again = to_int8(steady_graph, [IMAGES])
    assert again.model.SerializeToString(deterministic=True) == quantised.model.SerializeToString(deterministic=True)


def test_metadata_does_not_make_another_graph(steady_graph, cached):
    noted = onnx.ModelProto()
    noted.CopyFrom(steady_graph)
    onnx.helper.set_model_props(noted, {"names": "cat"})
    assert to_int8(noted, (), cache_file=cached[1]).calibration["reused_cache"]


def test_a_cache_of_another_graph_is_refused(steady_graph, cached):
    other = onnx.ModelProto()
    other.CopyFrom(steady_graph)
    weight = next(tensor for tensor in other.graph.initializer if len(tensor.dims) == 4)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(2), weight.name))
    with pytest.raises(UserError, match=r"ranges\.json contains the INT8 ranges of another ONNX graph"):
        to_int8(other, [IMAGES], cache_file=cached[1])


@pytest.mark.parametrize("content", ["TRT-100600-EntropyCalibration2\ninputs: 3c010a14\n", "[]", '{"format": "x"}', ""])
def test_a_file_that_is_no_cache_is_refused_and_stays(steady_graph, tmp_path, content):
    file = tmp_path / "cal.bin"
    file.write_text(content)
    with pytest.raises(UserError, match=r"cal\.bin is not a calibration cache of this tool"):
        to_int8(steady_graph, [IMAGES], cache_file=file)
    assert file.read_text() == content


def test_no_images_and_no_cache_is_refused(steady_graph, tmp_path):
    with pytest.raises(UserError, match="INT8 requires calibration images"):
        to_int8(steady_graph, (), cache_file=tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


# TensorRT


@pytest.mark.slow
def test_tensorrt_rtx_builds_the_graph(quantised, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    from rtdetr_tool.formats.tensorrt.export import BuildSettings, choose_backend

    onnx.save(quantised.model, tmp_path / "int8.onnx")
    settings = BuildSettings(1, 1, 4, compute_capabilities=("SM89",))
    built = choose_backend("tensorrt_rtx", False, ("SM89",)).build(tmp_path / "int8.onnx", settings)
    assert len(built.plan) > 1_000_000
