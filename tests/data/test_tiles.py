"""Cutting images into tiles, and merging the detections of tiles."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from video_files import BOXES, COLORS, ColorRuntime

from rtdetr_tool.data.folder import ImageFolder
from rtdetr_tool.data.tiles import Tiling, collate_tiles, tiled_sample
from rtdetr_tool.formats.detection_loop import LoopTimes, detect
from rtdetr_tool.ops.merging import merge_boxes
from rtdetr_tool.ops.structures import Target


@pytest.mark.parametrize(
    ("size", "tile", "overlap"),
    itertools.product([(97, 64), (64, 300), (1000, 1777)], [(64, 64), (50, 90)], [0.0, 0.25, 0.7]),
)
def test_tiles_cover_the_image_with_at_least_the_overlap(size, tile, overlap):
    height, width = size
    corners = Tiling(tile, overlap).corners(height, width)
    covered = np.zeros((height, width), int)
    for left, top in corners:
        assert left >= 0 and left + min(tile[1], width) <= width and top >= 0 and top + min(tile[0], height) <= height
        covered[top : top + tile[0], left : left + tile[1]] += 1
    assert covered.min() >= 1 and len(set(corners)) == len(corners)
    for axis, side in ((0, tile[1]), (1, tile[0])):
        starts = sorted({corner[axis] for corner in corners})
        shared = [before + side - after for before, after in itertools.pairwise(starts)]
        assert all(value >= int(side * overlap) for value in shared)


def test_an_image_that_fits_into_a_tile_is_not_cut():
    image = torch.zeros(3, 60, 64, dtype=torch.uint8)
    target = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 5, (60, 64), (64.0, 60.0))
    for whole in (True, False):
        sample = tiled_sample(image, target, Tiling((64, 64), whole_image=whole), (32, 32), False)
        assert [view.original_size for view in sample.views] == [(60, 64)] and sample.corners == [(0, 0)]


def test_nms_drops_boxes_of_the_same_class_only():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [50, 50, 60, 60]])
    kept, index = merge_boxes(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 0, 1, 0]), "nms", 0.5)
    assert index.tolist() == [0, 2, 3] and torch.equal(kept, boxes[index])


def test_nmm_joins_the_parts_of_a_cut_object():
    boxes = torch.tensor([[10.0, 10, 64, 40], [48, 10, 100, 40], [20, 15, 30, 25], [200, 200, 210, 210]])
    scores, labels = torch.tensor([0.9, 0.8, 0.2, 0.5]), torch.zeros(4, dtype=torch.int64)
    kept, index = merge_boxes(boxes, scores, labels, "nmm", 0.25)
    assert index.tolist() == [0, 3] and kept[0].tolist() == [10, 10, 100, 40]
    weak = scores.clone()
    weak[1] = 0.1  # a doubtful box does not extend a certain one
    assert merge_boxes(boxes, weak, labels, "nmm", 0.25)[0][0].tolist() == [10, 10, 64, 40]
    assert merge_boxes(boxes[:0], scores[:0], labels[:0], "nmm", 0.5)[0].shape == (0, 4)


def detections_of(path, tiling: Tiling):
    dataset = ImageFolder([str(path)], (64, 96), tiling=tiling)
    runtime, times = ColorRuntime(), LoopTimes()
    batch = collate_tiles([dataset[0]], tiling, (3, 64, 96), strict=True)
    ((target,), (found,)) = next((batch.targets, one) for batch, one in detect(runtime, [batch], 2, times))
    assert times.images == 1 and target.original_size == (400, 600) and sum(runtime.batches) == len(batch.images)
    return found.above(0.5), runtime.batches


def test_small_objects_are_detected_in_their_tile_once(tmp_path):
    """Squares in the overlap of tiles are detected in several of them, and cut by some."""
    places = [(20, 30), (300, 200), (570, 370), (88, 200)]  # the last one is in two tiles
    pixels = np.full((400, 600, 3), 90, np.uint8)
    for left, top in places:
        pixels[top : top + BOXES, left : left + BOXES] = COLORS[0]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tiling = Tiling((64, 96), 0.25, whole_image=False, merge="nmm", batch_size=4)
    found, batches = detections_of(tmp_path / "a.png", tiling)
    expected = sorted([left, top, left + BOXES, top + BOXES] for left, top in places)
    np.testing.assert_allclose(sorted(found.boxes.tolist()), expected, atol=1e-3)
    assert set(batches[:-1]) == {4} and len(tiling.corners(400, 600)) == sum(batches)


def test_the_whole_image_finds_what_is_larger_than_a_tile(tmp_path):
    pixels = np.full((400, 600, 3), 90, np.uint8)
    pixels[40:360, 100:500] = COLORS[1]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found, _ = detections_of(tmp_path / "a.png", Tiling((64, 96), 0.25, merge="nmm"))
    np.testing.assert_allclose(found.boxes.tolist(), [[100, 40, 500, 360]], atol=7)


def test_detections_are_in_order_of_score(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (400, 600, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    for merge in ("nms", "nmm"):
        tiling = Tiling((64, 96), merge=merge)
        batch = collate_tiles(
            [ImageFolder([str(tmp_path / "a.png")], (64, 96), tiling=tiling)[0]], tiling, (64, 96), True
        )
        _, (found,) = next(iter(detect(ColorRuntime(), [batch], 4)))
        assert (found.scores.diff() <= 0).all() and len(found) > 0
