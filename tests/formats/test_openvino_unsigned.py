"""INT8 graphs in OpenVINO give what onnxruntime computes, also behind concatenations."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from rtdetr_tool.formats.openvino import runtime
from rtdetr_tool.formats.openvino.unsigned import with_unsigned_activations

openvino = pytest.importorskip("openvino")
WIDTH, SCALE = 16, 0.03


class Builder:
    """A graph of INT8 convolutions and products, as `rtdetr quantize` writes it."""

    def __init__(self) -> None:
        self.nodes: list = []
        self.constants = [numpy_helper.from_array(np.int8(0), "zero")]
        self.rng = np.random.default_rng(0)

    def constant(self, name, value):
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, kind, inputs, name, **attributes):
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def quantized(self, name):
        scale = self.constant(f"{name}/scale", np.float32(SCALE))
        short = self.add("QuantizeLinear", [name, scale, "zero"], f"{name}/q")
        return self.add("DequantizeLinear", [short, scale, "zero"], f"{name}/dq")

    def weight(self, name, shape, axis):
        channels = shape[axis]
        numbers = self.constant(f"{name}/w", self.rng.integers(-127, 128, shape).astype(np.int8))
        scale = self.constant(f"{name}/ws", np.full(channels, 0.02 / np.sqrt(WIDTH), np.float32))
        zeros = self.constant(f"{name}/wz", np.zeros(channels, np.int8))
        return self.add("DequantizeLinear", [numbers, scale, zeros], f"{name}/wdq", axis=axis)

    def convolution(self, x, name, inputs=WIDTH):
        bias = self.constant(f"{name}/b", self.rng.normal(size=WIDTH).astype(np.float32))
        self.add("Conv", [x, self.weight(name, (WIDTH, inputs, 3, 3), 0), bias], name, pads=[1] * 4)
        return self.add("Mul", [name, self.add("Sigmoid", [name], f"{name}/sigmoid")], f"{name}/silu")

    def model(self, output):
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH, 20, 20])
        y = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", None, None, None])
        graph = helper.make_graph(self.nodes, "graph", [x], [y], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        onnx.checker.check_model(model)
        return model


def concatenated():
    """Two convolutions, a concatenation, and a convolution that reads it."""
    net = Builder()
    x = net.quantized("x")
    net.add("Concat", [net.convolution(x, "a"), net.convolution(x, "b")], "both", axis=1)
    return net.model(net.convolution(net.quantized("both"), "c", 2 * WIDTH))


def residual():
    net = Builder()
    x = net.quantized("x")
    net.add("Add", [net.convolution(x, "a"), net.quantized(net.convolution(x, "b"))], "sum")
    return net.model(net.convolution(net.quantized("sum"), "c"))


def linear():
    """A product with a matrix. Its activation stays signed."""
    net = Builder()
    tokens = net.add("Transpose", [net.convolution(net.quantized("x"), "a")], "tokens", perm=[0, 2, 3, 1])
    return net.model(net.add("MatMul", [net.quantized(tokens), net.weight("m", (WIDTH, WIDTH), 1)], "product"))


@pytest.mark.parametrize("build", [concatenated, residual, linear])
def test_openvino_computes_what_onnxruntime_does(build):
    model, images = build(), np.random.default_rng(1).normal(size=(2, WIDTH, 20, 20)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": images})
    core = openvino.Core()
    graph = core.read_model(with_unsigned_activations(model).SerializeToString())
    compiled = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    actual = compiled(images)[0]
    assert np.abs(actual - expected).mean() < 0.01 * np.abs(expected).mean()


def test_only_the_type_of_activations_of_convolutions_changes():
    model = concatenated()
    before = model.SerializeToString()
    changed = with_unsigned_activations(model)
    assert model.SerializeToString() == before
    types = {tensor.name: tensor.data_type for tensor in changed.graph.initializer}
    for node in changed.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            expected = TensorProto.INT8 if node.name.endswith("/wdq") else TensorProto.UINT8
            assert types[node.input[2]] == expected, node.name
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    images = np.random.default_rng(1).normal(size=(1, WIDTH, 20, 20)).astype(np.float32)
    results = [
        onnxruntime.InferenceSession(m.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(
            None, {"x": images}
        )[0]
        for m in (model, changed)
    ]
    np.testing.assert_allclose(*results, rtol=1e-6, atol=1e-6)
    of_tokens = [node for node in with_unsigned_activations(linear()).graph.node if node.name.startswith("tokens/")]
    assert [node.input[2] for node in of_tokens] == ["zero", "zero"]


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        ("processor: 0\nflags\t: fpu avx2 avx512f\n", True),
        ("processor: 0\nflags\t: fpu avx512f avx512_vnni\n", False),
        ("processor: 0\nflags\t: fpu avx2 avx_vnni\n", False),
        ("processor: 0\nFeatures\t: fp asimd\n", False),  # ARM
        (None, False),
    ],
)
def test_a_processor_without_vnni_is_recognized(text, lacks, tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(runtime, "_CPUINFO", path)
    assert runtime.lacks_vnni() == lacks
