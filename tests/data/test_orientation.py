"""Flips and rotations keep image, boxes, masks and keypoints together."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rtdetr_tool.data.orientation import Orientation, flipped_vertically, rotated, rotated_90
from rtdetr_tool.data.scene import Scene

SWAPS = np.array([[0, 2, 1]])


@st.composite
def scenes(draw):
    """A black image with a gray rectangle, its mask, and three keypoints on pixels of levels 100, 150 and 200."""
    height, width = draw(st.integers(20, 60)), draw(st.integers(20, 60))
    x1, y1 = draw(st.integers(0, width - 9)), draw(st.integers(0, height - 9))
    x2, y2 = draw(st.integers(x1 + 8, width)), draw(st.integers(y1 + 8, height))
    image = torch.zeros(height, width, draw(st.sampled_from([1, 3, 5])), dtype=torch.uint8).permute(2, 0, 1)
    image[:, y1:y2, x1:x2] = 50
    points = [[x1 + 1, y1 + 2, 2], [x1 + 3, y1 + 4, 2], [x1 + 5, y1 + 1, 1]]
    for level, (x, y, _) in zip((100, 150, 200), points, strict=True):
        image[:, y, x] = level
    mask = np.zeros((1, height, width), np.uint8)
    mask[0, y1:y2, x1:x2] = 1
    return Scene(
        image, np.array([[x1, y1, x2, y2]], float), np.array([3]), lambda indices: mask[indices],
        np.array([points], float), SWAPS,
    )  # fmt: skip


def check(scene: Scene, levels) -> None:
    """The box bounds the lit pixels, the mask equals them, and each keypoint has its level."""
    lit = (scene.image > 0).all(0).numpy()
    (x1, y1, x2, y2), rows, columns = scene.boxes[0], np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
    assert (x1, y1, x2, y2) == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert np.array_equal(scene.masks(np.array([0]))[0], lit)
    assert scene.masks(np.array([], int)).shape == (0, *lit.shape)
    for (x, y, _), level in zip(scene.keypoints[0], levels, strict=True):
        assert (scene.image[:, int(y), int(x)] == level).all()


@settings(max_examples=60, deadline=None)
@given(scenes(), st.integers(0, 3))
def test_a_rotation_by_90_degrees_moves_everything_alike(scene, times) -> None:
    result = rotated_90(scene, times)
    assert result.size == (scene.size if times % 2 == 0 else scene.size[::-1])
    check(result, (100, 150, 200))
    assert torch.equal(result.image, torch.rot90(scene.image, times, (1, 2)))
    back = rotated_90(result, 4 - times)
    assert torch.equal(back.image, scene.image) and np.array_equal(back.boxes, scene.boxes)
    assert np.array_equal(back.keypoints, scene.keypoints)


@settings(max_examples=60, deadline=None)
@given(scenes())
def test_a_vertical_flip_exchanges_left_and_right(scene) -> None:
    result = flipped_vertically(scene)
    check(result, (100, 200, 150))
    assert result.keypoints[0, :, 2].tolist() == [2, 1, 2]
    twice = flipped_vertically(result)
    assert torch.equal(twice.image, scene.image) and np.array_equal(twice.keypoints, scene.keypoints)


def test_keypoints_that_are_not_labeled_stay_zero() -> None:
    scene = Scene(
        torch.zeros(3, 8, 8, dtype=torch.uint8), np.array([[0.0, 0, 4, 4]]), np.zeros(1, int),
        keypoints=np.zeros((1, 3, 3)), swaps=SWAPS,
    )  # fmt: skip
    for result in (rotated_90(scene, 1), flipped_vertically(scene), rotated(scene, 5.0)):
        assert not result.keypoints.any()


def disk(center, radii, size):
    """A scene of a white ellipse with its box and mask and a keypoint in its center."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    mask = (((x - center[0]) / radii[0]) ** 2 + ((y - center[1]) / radii[1]) ** 2 <= 1).astype(np.uint8)[None]
    box = np.array([[center[0] - radii[0], center[1] - radii[1], center[0] + radii[0], center[1] + radii[1]]])
    image = torch.from_numpy(np.repeat(mask * 255, 3, axis=0))
    points = np.array([[[center[0] - 0.5, center[1] - 0.5, 2.0]]])
    return Scene(image, box, np.array([0]), lambda indices: mask[indices], points, np.array([[0]]))


@settings(max_examples=60, deadline=None)
@given(st.floats(-45, 45), st.floats(30, 90), st.floats(30, 70), st.floats(8, 25), st.floats(8, 25))
def test_after_a_rotation_the_box_bounds_the_ellipse(degrees, x, y, across, down) -> None:
    scene = disk((x, y), (across, down), (100, 120))
    result = rotated(scene, degrees)
    assert result.size == scene.size
    (x1, y1, x2, y2) = result.boxes[0]
    assert 0 <= x1 < x2 <= 120 and 0 <= y1 < y2 <= 100
    lit = result.image[0].numpy() > 127
    rows, columns = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
    assert np.abs(result.boxes[0] - [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).max() < 1.6
    mask = result.masks(np.array([0]))[0] > 0
    assert (mask & lit).sum() / (mask | lit).sum() > 0.9
    if x1 > 1 and x2 < 119 and y1 > 1 and y2 < 99:  # nothing is cut off
        assert lit.sum() == pytest.approx(math.pi * across * down, rel=0.1)
        center = [np.flatnonzero(lit.any(axis))[[0, -1]].mean() for axis in (0, 1)]
        assert result.keypoints[0, 0, :2] == pytest.approx(center, abs=1)


def test_objects_and_keypoints_that_leave_the_image_are_removed() -> None:
    scene = disk((115, 5), (4, 4), (100, 120))
    result = rotated(scene, 40)
    assert result.boxes.shape == (0, 4) and len(result.labels) == 0 and result.masks(np.array([], int)).shape[0] == 0
    wide = Scene(
        scene.image, np.array([[20.0, 20, 100, 80]]), np.array([0]), keypoints=np.array([[[119.0, 0, 2], [60, 50, 2]]]),
        swaps=np.array([[0, 1]]),
    )  # fmt: skip
    points = rotated(wide, 40).keypoints[0]
    assert not points[0].any() and points[1, 2] == 2


def test_steps_without_probability_draw_nothing() -> None:
    scene, rng = disk((40, 40), (5, 5), (80, 80)), np.random.default_rng(0)
    assert Orientation()(scene, rng) is scene
    assert rng.random() == np.random.default_rng(0).random()


def test_each_step_has_its_probability() -> None:
    scene = disk((30, 20), (5, 5), (64, 80))
    rng = np.random.default_rng(0)
    sizes = [Orientation(rotate90_prob=0.6)(scene, rng).size for _ in range(600)]
    assert np.mean([size == (80, 64) for size in sizes]) == pytest.approx(0.4, abs=0.07)  # two of three rotations
    flips = [Orientation(vertical_flip_prob=0.3)(scene, rng).boxes[0, 1] > 20 for _ in range(600)]
    assert np.mean(flips) == pytest.approx(0.3, abs=0.07)
    small = [Orientation(rotation_prob=0.5, rotation_degrees=20)(scene, rng).boxes[0, 0] for _ in range(600)]
    assert np.mean(np.array(small) != 25) == pytest.approx(0.5, abs=0.07)
