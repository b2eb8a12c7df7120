"""Any number of images with a bounded or fixed batch size gives the outputs of exactly these images, in order."""

from __future__ import annotations

import pytest
import torch

from rtdetr_tool.formats.batching import BatchLimits, run_in_batches


class Engine:
    """Returns mean and sum of each image; records its batches, and refuses unsupported sizes like a real engine."""

    def __init__(self, limits):
        self.limits, self.batches = limits, []

    def __call__(self, images):
        assert self.limits.smallest <= len(images) <= (self.limits.largest or len(images))
        self.batches.append(len(images))
        return {"means": images.mean((1, 2, 3)), "sums": images.sum((2, 3))}


@pytest.mark.parametrize(
    ("smallest", "largest", "count", "batches"),
    [
        (1, 4, 1, [1]),
        (1, 4, 4, [4]),
        (1, 4, 9, [4, 4, 1]),
        (2, 4, 1, [2]),
        (2, 4, 5, [4, 2]),
        (3, 3, 7, [3, 3, 3]),
        (8, 8, 3, [8]),
        (1, None, 5, [5]),
        (6, None, 5, [6]),
        (2, 4, 0, [2]),
    ],
)
def test_each_image_gets_its_own_result(smallest, largest, count, batches):
    engine = Engine(BatchLimits(smallest, largest))
    images = torch.rand(count, 3, 4, 5)
    result = run_in_batches(images, engine.limits, engine)
    assert engine.batches == batches
    assert torch.equal(result["means"], images.mean((1, 2, 3)))
    assert torch.equal(result["sums"], images.sum((2, 3))) and result["sums"].shape == (count, 3)


def test_filling_up_keeps_type_and_given_images():
    seen = []

    def engine(images):
        seen.append(images)
        return {"first": images[:, 0]}

    images = torch.rand(1, 3, 2, 2, dtype=torch.float64)
    run_in_batches(images, BatchLimits(3, 3), engine)
    assert seen[0].dtype == torch.float64
    assert torch.equal(seen[0][0], images[0]) and not seen[0][1:].any()


@pytest.mark.parametrize("limits", [(0, 1), (3, 2), (-1, None)])
def test_limits_that_no_batch_meets_are_refused(limits):
    with pytest.raises(ValueError, match="batch sizes"):
        BatchLimits(*limits)
