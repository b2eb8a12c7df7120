"""The text of `predictions.json` is that of json.dumps."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtdetr_tool.metrics.coco_results import result_rows, results_text
from rtdetr_tool.metrics.image_matches import ImageDetections

NUMBERS = st.lists(st.floats(), min_size=5, max_size=5)  # with nan, inf, -0.0 and subnormal numbers


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.integers(0, 2**53), st.lists(st.tuples(NUMBERS, st.integers(0, 2**53)), max_size=4)))
def test_the_text_is_that_of_json_dumps_for_all_numbers(images) -> None:
    detections = {
        image_id: ImageDetections(np.array([[*numbers, category] for numbers, category in rows]).reshape(-1, 6))
        for image_id, rows in images.items()
    }
    assert results_text(detections) == json.dumps(result_rows(detections))


def test_rows_are_in_the_order_of_image_ids_with_the_shapes_of_detections() -> None:
    row = np.array([[1.0, 2.0, 3.5, 4.0, 0.1, 7.0]])
    shape = {"segmentation": {"size": [4, 4], "counts": "\u00e9\\nan"}}
    detections = {9: ImageDetections(row), 2: ImageDetections(row, [shape])}
    expected = {"category_id": 7, "bbox": [1.0, 2.0, 3.5, 4.0], "score": 0.1}
    assert result_rows(detections) == [{"image_id": 2, **expected, **shape}, {"image_id": 9, **expected}]
    assert results_text(detections) == json.dumps(result_rows(detections))


@pytest.mark.parametrize("detections", [{}, {3: ImageDetections(np.zeros((0, 6)))}])
def test_no_detections_are_an_empty_list(detections) -> None:
    assert results_text(detections) == "[]"
