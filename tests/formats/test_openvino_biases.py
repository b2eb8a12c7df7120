"""Quantized layers without bias, whose scales OpenVINO moves to wrong places."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest

from rtdetr_tool.formats.openvino.agreement import LARGEST_RATIO, error_ratio
from rtdetr_tool.formats.openvino.biases import with_biases
from rtdetr_tool.formats.openvino.runtime import lacks_vnni
from rtdetr_tool.formats.openvino.unsigned import with_unsigned_activations
from tests.formats.int8_graphs import WIDTH, Builder, concatenated, pooled, unbiased
from tests.formats.openvino_faults import has_known_faults

pytest.importorskip("openvino")
pytestmark = pytest.mark.skipif(lacks_vnni(), reason="INT8 sums saturate on this processor")
IMAGES = np.random.default_rng(1).normal(size=(2, 2, WIDTH, 20, 20)).astype(np.float32)
zero = partial(unbiased, bias=0.0)


@pytest.mark.parametrize("build", [unbiased, zero, pooled])
def test_layers_without_bias_are_right_after_with_biases(build):
    model = with_biases(with_unsigned_activations(build()))
    assert 0.9 < error_ratio(build(int8=False), model, IMAGES) < 1.1


@has_known_faults
@pytest.mark.parametrize("build", [unbiased, zero, pooled])
def test_layers_without_bias_are_wrong_before(build):
    assert error_ratio(build(int8=False), with_unsigned_activations(build()), IMAGES) > 1.2 * LARGEST_RATIO


def run(model):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": IMAGES[0]})[0]


@pytest.mark.parametrize("build", [unbiased, zero, pooled, concatenated])
def test_added_biases_change_neither_outputs_nor_the_given_graph(build):
    model = build()
    before = model.SerializeToString()
    changed = with_biases(model)
    assert model.SerializeToString() == before
    onnx.checker.check_model(changed, full_check=True)
    np.testing.assert_allclose(run(changed), run(model), rtol=1e-5, atol=1e-6)
    added = {name for node in changed.graph.node for name in node.input if name.endswith("/bias")}
    layers = {unbiased: ["a", "b", "product"], zero: ["a", "b", "product"], pooled: ["product"], concatenated: []}
    assert added == {f"{name}/bias" for name in layers[build]}


@pytest.mark.parametrize(("bias", "kept"), [(None, False), (0.0, False), (0.5, True)])
def test_a_gemm_keeps_a_bias_with_values(bias, kept):
    net = Builder()
    rows = net.add("Flatten", [net.add("ReduceMean", ["x", net.constant("axes", [2, 3])], "mean")], "rows")
    added = [] if bias is None else [net.constant("c", np.full(WIDTH, bias, np.float32))]
    net.add("Gemm", [net.quantized(rows), net.weight("g", (WIDTH, WIDTH), 1), *added], "gemm")
    changed = with_biases(net.model("gemm", rank=2))
    (gemm,) = [node for node in changed.graph.node if node.op_type == "Gemm"]
    assert gemm.input[2] == ("c" if kept else "gemm/bias") and len(gemm.input) == 3
    np.testing.assert_allclose(run(changed), run(net.model("gemm", rank=2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("bias", "kept"), [(0.0, False), (0.5, True)])
def test_a_product_keeps_an_addition_of_a_vector_with_values(bias, kept):
    def build():
        net = Builder()
        net.add("MatMul", [net.quantized("x"), net.weight("m", (20, 20), 1)], "product")
        return net.model(net.add("Add", ["product", net.constant("b", np.full(20, bias, np.float32))], "sum"))

    changed = with_biases(build())
    added = [node.name for node in changed.graph.node if node.name.endswith("/bias")]
    assert added == ([] if kept else ["product/bias"])
    np.testing.assert_allclose(run(changed), run(build()), rtol=1e-5, atol=1e-6)
