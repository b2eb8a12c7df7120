"""Mosaic: four images around a random center in one network input (YOLOv4, Bochkovskiy et al. 2020, arXiv:2004.10934).

Each image is resampled once, directly into its part of the input. It has 0.5 to 1.5 times half the size that it would
have alone; what its part does not show is cut off, and what it does not cover is black.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rtdetr_tool.data.photometric import draw_distortion
from rtdetr_tool.data.preprocess import input_size
from rtdetr_tool.data.scene import PlacedScene, Scene, Shapes
from rtdetr_tool.data.transforms import TrainTransform, placed_boxes, placed_image, to_relative
from rtdetr_tool.data.window import Placement, Window

CENTER = (0.3, 0.7)  # position of the center, as a fraction of width and height
SCALE = (0.5, 1.5)  # size of an image relative to half of the input
PARTS = 4


def mosaic(scenes: Sequence[Scene], transform: TrainTransform, rng: np.random.Generator) -> PlacedScene:
    """Four scenes in the network's input, with the transform's distortions, flips and orientations, without crops."""
    height, width = outer = input_size(transform.size, transform.preserve_aspect_ratio)
    y, x = (round(side * rng.uniform(*CENTER)) for side in outer)
    canvas: Tensor | None = None
    boxes, labels, shapes = [], [], []
    for number, scene in enumerate(scenes):
        scene = transform.oriented(scene, rng)
        is_top, is_left = number < 2, number % 2 == 0
        top, bottom = (0, y) if is_top else (y, height)
        left, right = (0, x) if is_left else (x, width)
        inner, mirrored = (bottom - top, right - left), bool(rng.random() < transform.flip_prob)
        scale = rng.uniform(*SCALE) / 2
        window = _window(
            scene.size, inner, _pixels(scene.size, outer, scale, transform), (is_top, is_left != mirrored), rng
        )
        distort = draw_distortion(rng, transform.distortion_prob)
        part = placed_image(scene.image, Placement(window, inner, inner, mirrored), distort)
        if canvas is None:
            canvas = torch.zeros((height, width, len(part)), dtype=torch.uint8).permute(2, 0, 1)
        canvas[:, top:bottom, left:right] = part
        placement = Placement(window, inner, outer, mirrored, (top, left))
        visible = np.flatnonzero(_centers_in(scene.boxes, window))
        scaled, kept = placed_boxes(scene.boxes[visible], placement)
        kept = visible[kept]
        boxes.append(to_relative(scaled, outer))
        labels.append(scene.labels[kept])
        shapes.append(scene.shapes(kept, placement))
    assert canvas is not None
    return PlacedScene(
        canvas, torch.from_numpy(np.concatenate(boxes)), torch.from_numpy(np.concatenate(labels)), Shapes.joined(shapes)
    )


def _pixels(
    size: tuple[int, int], outer: tuple[int, int], scale: float, transform: TrainTransform
) -> tuple[float, float]:
    """Pixels of the image per pixel of the input, (y, x), if the image has `scale` times its usual size."""
    down, across = size[0] / outer[0], size[1] / outer[1]
    if transform.preserve_aspect_ratio:
        down = across = max(down, across)
    return down / scale, across / scale


def _window(
    size: tuple[int, int],
    inner: tuple[int, int],
    pixels: tuple[float, float],
    at_end: tuple[bool, bool],
    rng: np.random.Generator,
) -> Window:
    """What a part of `inner` pixels shows of an image of `size`, (height, width).

    A window larger than the image has it at the end or at the start, so that it touches the mosaic's center; a smaller
    one is at a random position.
    """
    starts, sides = [], []
    for length, part, ratio, end in zip(size, inner, pixels, at_end, strict=True):
        side = max(1, round(part * ratio))
        start = int(rng.integers(0, length - side + 1)) if side < length else (length - side if end else 0)
        starts.append(start)
        sides.append(side)
    return Window(starts[1], starts[0], sides[1], sides[0])


def _centers_in(boxes: NDArray[np.float64], window: Window) -> NDArray[np.bool_]:
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = (centers > [window.left, window.top]) & (centers < [window.right, window.bottom])
    both: NDArray[np.bool_] = np.logical_and.reduce(inside, axis=1)
    return both
