from __future__ import annotations

import numpy as np
import pycocotools.mask as judge
import pytest
import torch

from rtdetr_tool.ops.masks import UNKNOWN, compact, counts_of, decode, encode, encode_masks, rasterize, to_coco
from rtdetr_tool.ops.postprocess import postprocess
from rtdetr_tool.ops.structures import InstanceMasks, Predictions, Target

HEIGHT, WIDTH = 5, 6
SQUARE = [1, 1, 4, 1, 4, 3, 1, 3]
MASK = np.zeros((HEIGHT, WIDTH), np.uint8)
MASK[1:3, 1:4] = 1
ALL = torch.arange(7)
RUNS = [6, 2, 3, 2, 3, 2, 12]  # of MASK, column by column


def outlines(seed: int) -> list[list[float]]:
    rng = np.random.default_rng(seed)
    return [(rng.random(2 * rng.integers(3, 12)) * 60 - 5).tolist() for _ in range(int(rng.integers(1, 4)))]


@pytest.mark.parametrize("seed", range(8))
def test_outlines_and_run_lengths_are_pycocotools(seed):
    expected = judge.merge(judge.frPyObjects(outlines(seed), 40, 50))
    actual = rasterize(outlines(seed), 40, 50)
    assert actual == expected["counts"]
    pixels = judge.decode(expected)
    assert np.array_equal(decode(actual, 40, 50), pixels) and encode(pixels) == expected["counts"]


@pytest.mark.parametrize(
    "segmentation",
    [
        [SQUARE],
        {"size": [HEIGHT, WIDTH], "counts": RUNS},
        {"size": [HEIGHT, WIDTH], "counts": encode(MASK).decode()},
        [[1, 1, 4, 1, 4, 2, 1, 2], [1, 2, 4, 2, 4, 3, 1, 3]],
    ],
    ids=["outline", "run lengths", "compressed", "two parts"],
)
def test_every_form_of_a_segmentation_is_the_same_mask(segmentation):
    for form in (segmentation, compact(segmentation)):
        assert np.array_equal(decode(counts_of(form, HEIGHT, WIDTH), HEIGHT, WIDTH), MASK)


@pytest.mark.parametrize(
    "segmentation",
    [
        "text", 7, [[1, 1, 2, 2]], [[1, 1, 2, 2, 3]], [[1, 1, float("nan"), 2, 3, 3]], [[1, 1, 1e9, 2, 3, 3]],
        [["a", 1, 2, 2, 3, 3]], [[[1, 1], [2, 2], [3, 3]]], [[-4, -4, -2, -4, -2, -2]], [],
        {"counts": RUNS}, {"size": [HEIGHT, WIDTH]}, {"size": [6, 5], "counts": RUNS}, {"size": "x", "counts": RUNS},
        {"size": [HEIGHT, WIDTH], "counts": [3, 400]}, {"size": [HEIGHT, WIDTH], "counts": [3, -4, 31]},
        {"size": [HEIGHT, WIDTH], "counts": "hello world"}, {"size": [HEIGHT, WIDTH], "counts": "\u20ac"},
        {"size": [HEIGHT, WIDTH], "counts": [30]}, {"size": [HEIGHT, WIDTH], "counts": None},
        {"size": [HEIGHT, WIDTH], "counts": [1e300, 2]}, {"size": [10**30, 1], "counts": RUNS},
    ],
)  # fmt: skip
def test_what_is_not_a_mask_is_recognized(segmentation):
    assert counts_of(segmentation, HEIGHT, WIDTH) is None
    assert counts_of(compact(segmentation), HEIGHT, WIDTH) is None


def test_an_unknown_mask_has_no_pixels():
    assert not decode(UNKNOWN, HEIGHT, WIDTH).any()
    assert to_coco(encode(MASK), (HEIGHT, WIDTH)) == {"size": [5, 6], "counts": encode(MASK).decode()}


def test_predicted_masks_are_those_of_the_best_detections_at_the_size_of_the_image():
    """Two queries with 4 x 4 masks on an input with a 6 x 8 image in its upper three quarters."""
    logits = torch.tensor([[[-9.0, 2.0], [1.0, -9.0]]])
    masks = torch.full((1, 2, 4, 4), -1.0)
    masks[0, 0, :, :2] = 1.0  # left half
    masks[0, 1, 3:] = 1.0  # only in the padding
    target = Target(torch.zeros(0, 4), torch.zeros(0), 1, (6, 8), (8.0, 8.0))
    (result,) = postprocess(Predictions(logits, torch.zeros(1, 2, 4), masks=masks), [target], 2)
    assert result.labels.tolist() == [1, 0]
    left, below = (decode(counts, 6, 8) for counts in encode_masks(result.masks))
    assert left[:, :4].all() and not left[:, 4:].any() and not below.any()
    assert len(encode_masks(result.above(0.8).masks)) == 1


def test_masks_are_interpolated_before_they_are_cut_at_zero():
    logits = torch.tensor([[[-1.0, 4.0]]])  # at 1 and 3 of 0..4; the second pixel, at 1.5, has 0.25
    (counts,) = encode_masks(InstanceMasks(logits, ALL[:1], (1, 4), (1, 4)))
    assert decode(counts, 1, 4).tolist() == [[0, 1, 1, 1]]
    (counts,) = encode_masks(InstanceMasks(-logits, ALL[:1], (1, 4), (1, 4)))
    assert decode(counts, 1, 4).tolist() == [[1, 0, 0, 0]]


def test_many_large_masks_are_made_some_at_a_time(monkeypatch):
    from rtdetr_tool.ops import masks as module

    logits = torch.randn(7, 3, 3, generator=torch.Generator().manual_seed(0))
    whole = encode_masks(InstanceMasks(logits, ALL, (20, 30), (20, 30)))
    monkeypatch.setattr(module, "_CHUNK", 1300)
    assert encode_masks(InstanceMasks(logits, ALL, (20, 30), (20, 30))) == whole
    assert len(list(module.pixels_of(InstanceMasks(logits, ALL, (20, 30), (20, 30))))) == 4


def test_detections_that_share_a_query_share_its_mask():
    logits = torch.tensor([[[1.0]], [[-1.0]], [[1.0]]])
    masks = InstanceMasks(logits, torch.tensor([2, 1, 2]), (2, 3), (2, 3))
    assert [decode(counts, 2, 3).sum() for counts in encode_masks(masks)] == [6, 0, 6]
    assert [decode(counts, 2, 3).sum() for counts in encode_masks(masks.select([False, True, True]))] == [0, 6]
