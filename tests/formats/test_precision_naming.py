"""The precision of a graph by name, as tables show it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rtdetr_tool.formats.precision import is_quantized, precision_name


def model(*nodes, **constants) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    return helper.make_model(helper.make_graph(list(nodes), "graph", [], [], tensors))


def dequantize(tensor: str) -> onnx.NodeProto:
    return helper.make_node("DequantizeLinear", [tensor, "scale"], [f"{tensor}_float"])


def quantize(*zero: str, **attributes) -> onnx.NodeProto:
    return helper.make_node("QuantizeLinear", ["images", "scale", *zero], ["short"], **attributes)


FLOAT, HALF, BYTES = np.ones(2, np.float32), np.ones(2, np.float16), np.ones(2, np.int8)
FP8 = TensorProto.FLOAT8E4M3FN
GRAPHS = {
    "FP32": model(w=FLOAT, indices=np.ones(2, np.int64)),
    "FP16": model(w=HALF, scale=FLOAT),
    "INT8 weights": model(dequantize("w"), w=BYTES, scale=FLOAT),
    "INT8 weights and FP16": model(dequantize("w"), w=BYTES, scale=HALF),
    "INT8": model(quantize("zero"), dequantize("short"), dequantize("w"), w=BYTES, zero=np.int8(0), scale=FLOAT),
    "INT8 and FP16": model(quantize(), dequantize("short"), scale=FLOAT, w=HALF),
    "INT8 and FP8": model(quantize(output_dtype=FP8), dequantize("short"), dequantize("w"), w=BYTES, scale=FLOAT),
    "FP8": model(quantize(output_dtype=FP8), dequantize("short"), scale=FLOAT),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_the_name_follows_from_the_types_of_the_tensors(name):
    assert precision_name(GRAPHS[name]) == name
    assert is_quantized(GRAPHS[name]) == (name not in ("FP32", "FP16"))


def test_operators_of_other_tools_that_compute_in_integers_count():
    dynamic = model(helper.make_node("MatMulInteger", ["a", "w"], ["c"]), w=np.ones(2, np.uint8))
    assert is_quantized(dynamic) and precision_name(dynamic) == "INT8"


def test_constants_may_be_nodes():
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(BYTES))
    assert precision_name(model(constant, dequantize("w"), scale=FLOAT)) == "INT8 weights"
