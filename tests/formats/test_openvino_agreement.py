"""A graph that OpenVINO computes wrongly in INT8 is distinguished from rounding."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from rtdetr_tool.errors import RtdetrError
from rtdetr_tool.formats.openvino import agreement
from rtdetr_tool.formats.openvino.agreement import LARGEST_RATIO, NEGLIGIBLE, error_ratio
from rtdetr_tool.formats.openvino.biases import with_biases
from rtdetr_tool.formats.openvino.library import core
from rtdetr_tool.formats.openvino.runtime import lacks_vnni
from rtdetr_tool.formats.openvino.unsigned import with_unsigned_activations
from tests.formats.int8_graphs import WIDTH, both, concatenated, linear, pooled, residual, selected, unbiased
from tests.formats.openvino_faults import has_known_faults

pytest.importorskip("openvino")
pytestmark = pytest.mark.skipif(lacks_vnni(), reason="INT8 sums saturate on this processor")
IMAGES = np.random.default_rng(1).normal(size=(2, 2, WIDTH, 20, 20)).astype(np.float32)


def corrected(model):
    return with_biases(with_unsigned_activations(model))


def with_batch(model, size):
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = size
    return model


@pytest.mark.parametrize("build", [concatenated, residual, linear, both, selected, pooled, unbiased])
@pytest.mark.parametrize("fixed", [False, True])
def test_correct_outputs_have_a_ratio_near_one(build, fixed):
    models = build(int8=False), corrected(build())
    full, quantized = (with_batch(model, 2) for model in models) if fixed else models
    assert 0.9 < error_ratio(full, quantized, IMAGES) < 1.1


@has_known_faults
@pytest.mark.parametrize("build", [concatenated, both, selected])
def test_signed_activations_behind_a_concatenation_are_noticed(build):
    assert error_ratio(build(int8=False), build(), IMAGES) > 2 * LARGEST_RATIO


class WrongCore:
    """An OpenVINO that mixes up the scales of a layer's channels, in graphs for any batch size or for a fixed one."""

    def read_model(self, content):
        model = onnx.load_from_string(content)
        for tensor in model.graph.initializer:
            if tensor.name.endswith("/ws"):
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[::-1].copy(), tensor.name))
        return core().read_model(model.SerializeToString())


def test_misplaced_scales_are_noticed(monkeypatch):
    monkeypatch.setattr(agreement, "core", WrongCore)
    for build in (linear, residual):
        assert error_ratio(build(int8=False), corrected(build()), IMAGES) > 2 * LARGEST_RATIO


@pytest.mark.parametrize("fixed", [False, True])
def test_a_dynamic_graph_is_checked_for_one_batch_size_too(monkeypatch, fixed):
    """It is enough that one of the two is wrong."""
    right, wrong = (each.read_model(corrected(linear()).SerializeToString()) for each in (core(), WrongCore()))
    original = agreement.compiled

    def compiled(model, precision):
        is_fixed = model.inputs[0].partial_shape[0].is_static
        chosen = wrong if is_fixed == fixed else right
        return original(agreement.with_batch(chosen, "x", 2) if is_fixed else chosen, precision)

    monkeypatch.setattr(agreement, "compiled", compiled)
    assert error_ratio(linear(int8=False), corrected(linear()), IMAGES) > 2 * LARGEST_RATIO


def test_what_openvino_cannot_compile_is_an_error_of_openvino(monkeypatch):
    def fail(model, precision):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(agreement, "compiled", fail)
    with pytest.raises(RtdetrError, match=r"OpenVINO .* cannot run this model in INT8: no such operator"):
        error_ratio(linear(int8=False), corrected(linear()), IMAGES)


def test_errors_elsewhere_are_not_those_of_openvino():
    def fail():
        raise RuntimeError("out of memory")
        yield

    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        error_ratio(linear(int8=False), corrected(linear()), fail())


class TestError:
    rng = np.random.default_rng(0)

    @pytest.mark.parametrize("classes", [1, 3, 80])
    def test_an_added_background_hides_nothing(self, classes):
        logits = self.rng.normal(size=(1, 300, classes + 1)).astype(np.float32)
        logits[..., -1] = -100
        errors = [agreement._error(logits + step * (logits > -100), logits) for step in (0.1, 0.3)]
        assert (errors[1] - NEGLIGIBLE) / (errors[0] - NEGLIGIBLE) == pytest.approx(3, rel=0.01)
        assert errors[0] == pytest.approx(0.1 / 0.8, rel=0.1)  # the mean deviation of a normal distribution is 0.8

    def test_rounding_of_an_output_that_is_constant_is_ignored(self):
        constant = np.full((1, 10, 4), 0.25, np.float32)
        rounded = np.nextafter(constant, np.float32(1))
        assert agreement._error(rounded, constant) < LARGEST_RATIO * agreement._error(constant, constant)
        assert agreement._error(constant + 0.1, constant) > 10 * LARGEST_RATIO * NEGLIGIBLE

    def test_infinite_values_of_full_precision_do_not_count(self):
        scores = np.array([[1.0, 2.0, -np.inf]])
        assert agreement._error(np.array([[1.0, 2.5, 0.0]]), scores) == pytest.approx(0.25 / 0.5 + NEGLIGIBLE)
        assert agreement._error(np.zeros((1, 2)), np.full((1, 2), -np.inf)) == NEGLIGIBLE

    def test_no_number_is_no_number(self):
        assert np.isnan(agreement._error(np.array([[np.nan, 1.0]]), np.array([[0.0, 1.0]])))
