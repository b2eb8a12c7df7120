from __future__ import annotations

import pytest
import torch

from rtdetr_tool.ops.postprocess import postprocess, select_top
from rtdetr_tool.ops.structures import Predictions, Target


def target(original=(100, 200), scale=(200.0, 100.0), image_id=0) -> Target:
    return Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), image_id, original, scale)


def test_pairs_of_query_and_class_are_ranked_together():
    logits = torch.tensor([[[0.0, 3.0], [2.0, -1.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.25, 0.5, 0.1, 0.1]]])
    (result,) = postprocess(Predictions(logits, boxes), [target()], num_select=3)
    assert result.labels.tolist() == [1, 0, 0]
    assert result.scores.tolist() == pytest.approx(torch.tensor([3.0, 2.0, 0.0]).sigmoid().tolist())
    assert result.boxes[0].tolist() == pytest.approx([80, 30, 120, 70])
    assert result.boxes[1].tolist() == pytest.approx([40, 45, 60, 55])
    assert torch.allclose(result.boxes[2], result.boxes[0])  # the same query with its other class


def test_asking_for_more_pairs_than_there_are_gives_all():
    predictions = Predictions(torch.randn(2, 3, 2), torch.rand(2, 3, 4))
    scores, labels, boxes = select_top(predictions, 300)
    assert scores.shape == labels.shape == (2, 6) and boxes.shape == (2, 6, 4)
    assert all(len(result) == 6 for result in postprocess(predictions, [target(), target()], 300))


def test_each_image_gets_its_own_scale_and_boxes_are_clipped_to_it():
    logits = torch.zeros(2, 1, 1)
    boxes = torch.tensor([[[0.5, 0.5, 1.5, 1.0]], [[0.5, 0.4, 1.0, 0.8]]])
    # The second image was padded below: its 80 rows are the upper 80% of the square input.
    targets = [target(), target((80, 100), (100.0, 100.0))]
    first, second = postprocess(Predictions(logits, boxes), targets, 10)
    assert first.boxes.tolist() == [[0, 0, 200, 100]]
    assert second.boxes[0].tolist() == pytest.approx([0, 0, 100, 80])


def test_half_precision_predictions_are_scored_in_float32():
    predictions = Predictions(torch.randn(1, 4, 3).bfloat16(), torch.rand(1, 4, 4).bfloat16())
    (result,) = postprocess(predictions, [target()], 5)
    assert result.scores.dtype == result.boxes.dtype == torch.float32
    assert (result.scores.diff() <= 0).all()


def test_above_keeps_scores_that_equal_the_threshold():
    (result,) = postprocess(Predictions(torch.zeros(1, 2, 1), torch.rand(1, 2, 4)), [target()], 2)
    assert len(result.above(0.5)) == 2 and len(result.above(0.51)) == 0
