"""A mosaic has four images, and its boxes, masks and keypoints are where it shows them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rtdetr_tool.data.mosaic import mosaic
from rtdetr_tool.data.orientation import Orientation
from rtdetr_tool.data.scene import Scene
from rtdetr_tool.data.transforms import TrainTransform
from rtdetr_tool.ops.boxes import cxcywh_to_xyxy

LEVELS = (100, 140, 180, 220)  # of the objects in the four images
PLAIN = TrainTransform((96, 128), distortion_prob=0.0)


def scene(level: int, size: tuple[int, int], corners: tuple[int, int, int, int], channels: int = 3) -> Scene:
    """A dark image with a rectangle, and a keypoint in its center."""
    image = torch.full((channels, *size), 20, dtype=torch.uint8)
    x1, y1, x2, y2 = corners
    image[:, y1:y2, x1:x2] = level
    mask = np.zeros((1, *size), np.uint8)
    mask[0, y1:y2, x1:x2] = 1
    center = [[[(x1 + x2 - 1) / 2, (y1 + y2 - 1) / 2, 2.0]]]
    return Scene(
        image, np.array([corners], float), np.array([level]), lambda indices: mask[indices], np.array(center),
        np.array([[0]]),
    )  # fmt: skip


def four(rng, channels):
    scenes = []
    for level in LEVELS:
        height, width = rng.integers(40, 160, 2).tolist()
        x1, y1 = int(rng.integers(0, width - 24)), int(rng.integers(0, height - 24))
        x2, y2 = int(rng.integers(x1 + 20, width + 1)), int(rng.integers(y1 + 20, height + 1))
        scenes.append(scene(level, (height, width), (x1, y1, x2, y2), channels))
    return scenes


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.sampled_from([1, 3, 4]))
def test_boxes_masks_and_keypoints_are_where_the_mosaic_shows_them(seed, preserve, channels) -> None:
    rng = np.random.default_rng(seed)
    orientation = Orientation(vertical_flip_prob=0.5, rotate90_prob=0.5)
    transform = replace(PLAIN, preserve_aspect_ratio=preserve, orientation=orientation)
    result = mosaic(four(rng, channels), transform, rng)
    height, width = result.image.shape[-2:]
    assert (height, width) == ((128, 128) if preserve else (96, 128)) and result.image.dtype == torch.uint8
    assert result.image.stride(0) == 1 and len(result.image) == channels
    count = len(result.labels)
    assert len(set(result.labels.tolist())) == count == len(result.boxes) == len(result.shapes.masks)
    assert result.boxes.dtype == torch.float32 and ((result.boxes >= 0) & (result.boxes <= 1)).all()
    for index, level in enumerate(result.labels.tolist()):
        x1, y1, x2, y2 = (cxcywh_to_xyxy(result.boxes[index]) * torch.tensor([width, height] * 2)).tolist()
        mask = result.shapes.masks[index]
        inner = result.image[0, int(y1) + 2 : int(y2) - 1, int(x1) + 2 : int(x2) - 1]
        assert (inner == level).all()
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        bounds = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert np.abs(np.array(bounds) - [x1, y1, x2, y2]).max() <= 1
        x, y, visible = result.shapes.keypoints[index, 0].tolist()
        # The center of an object that is kept is in its image; it is at the last pixel at most.
        assert visible == 2 and x1 - 1 <= x * width <= x2 and y1 - 1 <= y * height <= y2


def test_objects_with_their_center_outside_of_a_part_are_removed_and_others_kept() -> None:
    kept, whole = 0, 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        result = mosaic([scene(level, (60, 80), (0, 0, 80, 60)) for level in LEVELS], PLAIN, rng)
        kept, whole = kept + len(result.labels), whole + 4
        assert (result.image.unique().tolist()[-1]) <= 220
    assert 0.4 * whole < kept < whole


def test_parts_touch_the_center_and_have_half_their_size_on_average() -> None:
    shares = []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        result = mosaic([scene(level, (96, 128), (0, 0, 128, 96)) for level in (200, 50, 60, 70)], PLAIN, rng).image[0]
        shares.append(float((result > 0).float().mean()))
        rows, columns = (result == 200).nonzero().T  # the image at the top left
        x, y = int(columns.max()) + 1, int(rows.max()) + 1
        assert 0.28 * 128 < x < 0.72 * 128 and 0.28 * 96 < y < 0.72 * 96
        assert result[y - 1, x - 1] > 0 and result[y + 1, x + 1] == 70
    assert 0.6 < np.mean(shares) < 0.95


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 2)])
def test_tiny_and_thin_images_are_accepted(size) -> None:
    for seed in range(20):
        image = torch.zeros(3, *size, dtype=torch.uint8)
        tiny = Scene(image, np.array([[0.0, 0, size[1], size[0]]]), np.array([0]))
        result = mosaic([tiny] * 4, PLAIN, np.random.default_rng(seed))
        assert result.image.shape == (3, 96, 128) and result.shapes.masks is None
