"""A graph that OpenVINO computes wrongly in INT8 is told from rounding."""

from __future__ import annotations

import numpy as np
import pytest

from rtdetr_tool.formats.openvino.agreement import LARGEST_RATIO, error_ratio
from rtdetr_tool.formats.openvino.runtime import lacks_vnni
from rtdetr_tool.formats.openvino.unsigned import with_unsigned_activations
from tests.formats.int8_graphs import WIDTH, both, concatenated, linear, pooled, residual, selected

pytest.importorskip("openvino")
pytestmark = pytest.mark.skipif(lacks_vnni(), reason="INT8 sums saturate on this processor")


def ratio_of(build, change=lambda model: model):
    images = np.random.default_rng(1).normal(size=(2, 2, WIDTH, 20, 20)).astype(np.float32)
    return error_ratio(build(int8=False), change(build()), images)


@pytest.mark.parametrize("build", [concatenated, residual, linear, both, selected])
def test_outputs_that_are_right_have_the_errors_of_onnxruntime(build):
    assert 0.9 < ratio_of(build, with_unsigned_activations) < 1.1


@pytest.mark.parametrize("build", [concatenated, both, selected])
def test_signed_activations_behind_a_concatenation_are_noticed(build):
    assert ratio_of(build) > 2 * LARGEST_RATIO


def test_another_error_of_openvino_is_noticed():
    """Scales of a layer without bias."""
    assert ratio_of(pooled, with_unsigned_activations) > 1.2 * LARGEST_RATIO
