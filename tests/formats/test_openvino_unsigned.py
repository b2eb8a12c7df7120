"""INT8 graphs in OpenVINO give what onnxruntime computes, also behind concatenations."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto

from rtdetr_tool.formats.openvino import runtime
from rtdetr_tool.formats.openvino.library import core
from rtdetr_tool.formats.openvino.unsigned import with_unsigned_activations
from tests.formats.int8_graphs import WIDTH, both, concatenated, linear, residual

pytest.importorskip("openvino")


@pytest.mark.parametrize("build", [concatenated, residual, linear, both])
def test_openvino_computes_what_onnxruntime_does(build):
    model, images = build(), np.random.default_rng(1).normal(size=(2, WIDTH, 20, 20)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": images})
    graph = core().read_model(with_unsigned_activations(model).SerializeToString())
    compiled = core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    actual = compiled(images)[0]
    assert np.abs(actual - expected).mean() < 0.01 * np.abs(expected).mean()


def test_only_activations_that_anything_but_a_linear_layer_reads_change_their_type():
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
    of_both = {node.input[2] for node in with_unsigned_activations(both()).graph.node if node.name.startswith("both/")}
    assert of_both == {"zero", "zero/unsigned"}
    of_tokens = [node for node in with_unsigned_activations(linear()).graph.node if node.name.startswith("tokens/")]
    assert [node.input[2] for node in of_tokens] == ["zero", "zero"]


@pytest.mark.parametrize(
    ("text", "without_vnni", "without_bfloat16"),
    [
        ("processor: 0\nflags\t: fpu avx2 avx512f\n", True, True),
        ("processor: 0\nflags\t: fpu avx512f avx512_vnni\n", False, True),
        ("processor: 0\nflags\t: fpu avx2 avx_vnni\n", False, True),
        ("processor: 0\nflags\t: fpu avx2 avx_vnni avx_ne_convert\n", False, False),
        ("processor: 0\nflags\t: fpu avx512f avx512_bf16 avx512_vnni\n", False, False),
        ("processor: 0\nflags\t: fpu avx512f avx512_vnni amx_bf16\n", False, False),
        ("processor: 0\nFeatures\t: fp asimd\n", False, False),  # ARM
        (None, False, False),
    ],
)
def test_a_processor_without_fast_instructions_is_recognized(
    text, without_vnni, without_bfloat16, tmp_path, monkeypatch
):
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(runtime, "_CPUINFO", path)
    assert (runtime.lacks_vnni(), runtime.lacks_bfloat16()) == (without_vnni, without_bfloat16)
