"""FP16 graphs on a CPU have the overflow and rounding of FP16."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.precision import emulate_half, scoring_options

LEVELS = onnxruntime.GraphOptimizationLevel
VALUES = np.array([1.0, 30.0, 1.0003, 0.3333333, -7.77], np.float32)


def graph_of(nodes, weights, inputs=("x", TensorProto.FLOAT), outputs=("y", TensorProto.FLOAT), opset=17):
    ends = [[helper.make_tensor_value_info(*end, ["n"])] for end in (inputs, outputs)]
    graph = helper.make_graph(nodes, "graph", *ends, [numpy_helper.from_array(v, k) for k, v in weights.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model, values, level=LEVELS.ORT_ENABLE_ALL):
    options = scoring_options()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: values})[0]


@pytest.fixture
def chain():
    """x in FP16, multiplied and divided by 3000, converted back to FP32."""
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["h", "large"], ["big"]),
        helper.make_node("Mul", ["big", "small"], ["back"]),
        helper.make_node("Cast", ["back"], ["y"], to=TensorProto.FLOAT),
    ]
    return graph_of(nodes, {"large": np.float16(3000), "small": np.float16(1 / 3000)})


@pytest.mark.parametrize("level", [LEVELS.ORT_DISABLE_ALL, LEVELS.ORT_ENABLE_BASIC, LEVELS.ORT_ENABLE_ALL])
def test_overflow_and_rounding_are_those_of_numpys_float16_at_every_optimisation_level(chain, level):
    with np.errstate(over="ignore"):
        expected = VALUES.astype(np.float16) * np.float16(3000) * np.float16(1 / 3000)
    assert np.isinf(expected[1])  # 90000 is above 65504
    assert run(emulate_half(chain), VALUES, level).tolist() == expected.astype(np.float32).tolist()


def test_values_below_half_precision_become_zero():
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["h", "h"], ["square"]),
        helper.make_node("Cast", ["square"], ["y"], to=TensorProto.FLOAT),
    ]
    result = run(emulate_half(graph_of(nodes, {})), np.array([1e-4, 1e-2], np.float32))
    assert result[0] == 0.0  # 1e-8
    assert result[1] == np.float32(np.float16(1e-2) * np.float16(1e-2))


def test_inputs_and_outputs_in_half_precision_keep_their_type():
    nodes = [helper.make_node("Mul", ["x", "large"], ["y"])]
    half = TensorProto.FLOAT16
    model = emulate_half(graph_of(nodes, {"large": np.float16(3000)}, ("x", half), ("y", half)))
    onnx.checker.check_model(model, full_check=True)
    result = run(model, VALUES.astype(np.float16))
    assert result.dtype == np.float16
    with np.errstate(over="ignore"):
        assert result.tolist() == (VALUES.astype(np.float16) * np.float16(3000)).tolist()


def test_constants_inside_nodes_are_widened_too():
    constant = helper.make_tensor("value", TensorProto.FLOAT16, [1], np.array([3000], np.float16).tobytes(), raw=True)
    nodes = [
        helper.make_node("Constant", [], ["large"], value=constant),
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["h", "large"], ["big"]),
        helper.make_node("Cast", ["big"], ["y"], to=TensorProto.FLOAT),
    ]
    result = run(emulate_half(graph_of(nodes, {})), VALUES)
    assert np.isinf(result[1]) and result[0] == 3000


def test_a_graph_without_half_precision_comes_back_unchanged():
    model = graph_of([helper.make_node("Mul", ["x", "large"], ["y"])], {"large": np.float32(3000)})
    assert emulate_half(model) == model


def test_half_precision_inside_a_branch_is_refused():
    def branch(name):
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT16, None)
        return helper.make_graph([helper.make_node("Neg", ["h"], [name])], name, [], [out])

    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("If", ["yes"], ["chosen"], then_branch=branch("a"), else_branch=branch("b"), name="choice"),
        helper.make_node("Cast", ["chosen"], ["y"], to=TensorProto.FLOAT),
    ]
    with pytest.raises(UserError, match="choice: FP16 around or inside If cannot be scored on a CPU"):
        emulate_half(graph_of(nodes, {"yes": np.array(True)}))
