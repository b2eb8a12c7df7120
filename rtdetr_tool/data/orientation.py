"""Vertical flips, rotations by 90 degrees and rotations by small angles of an image with its objects.

They are applied to the decoded image, before crops and resizing. Rotations are counterclockwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rtdetr_tool.data.scene import Scene


@dataclass(frozen=True)
class Orientation:
    """Probabilities of the steps; all 0 draws nothing from the generator."""

    vertical_flip_prob: float = 0.0
    rotate90_prob: float = 0.0
    rotation_prob: float = 0.0
    rotation_degrees: float = 10.0

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        if self.rotation_prob and rng.random() < self.rotation_prob:
            scene = rotated(scene, rng.uniform(-self.rotation_degrees, self.rotation_degrees))
        if self.rotate90_prob and rng.random() < self.rotate90_prob:
            scene = rotated_90(scene, int(rng.integers(1, 4)))
        if self.vertical_flip_prob and rng.random() < self.vertical_flip_prob:
            scene = flipped_vertically(scene)
        return scene


def flipped_vertically(scene: Scene) -> Scene:
    height, masks = scene.size[0], scene.masks
    x1, y1, x2, y2 = scene.boxes.T
    points = scene.keypoints
    if points is not None and scene.swaps is not None:  # a mirrored image
        points = np.take_along_axis(points, scene.swaps[..., None], axis=1)
        points = _moved(points, points[..., 0], height - 1 - points[..., 1])
    return replace(
        scene,
        image=_channels_first(_channels_last(scene.image)[::-1]),
        boxes=np.stack([x1, height - y2, x2, height - y1], axis=1),
        masks=None if masks is None else lambda indices: np.ascontiguousarray(masks(indices)[:, ::-1]),
        keypoints=points,
    )


def rotated_90(scene: Scene, times: int) -> Scene:
    """Rotated by `times` times 90 degrees."""
    (height, width), boxes, points, masks = scene.size, scene.boxes, scene.keypoints, scene.masks
    for _ in range(times % 4):
        x1, y1, x2, y2 = boxes.T
        boxes = np.stack([y1, width - x2, y2, width - x1], axis=1)
        if points is not None:
            points = _moved(points, points[..., 1], width - 1 - points[..., 0])
        height, width = width, height
    return replace(
        scene,
        image=_channels_first(_rotated_pixels(_channels_last(scene.image), times)),
        boxes=boxes,
        masks=None if masks is None else lambda indices: np.ascontiguousarray(np.rot90(masks(indices), times, (1, 2))),
        keypoints=points,
    )


def _rotated_pixels(pixels: NDArray[np.uint8], times: int) -> NDArray[np.uint8]:
    """[H, W, C] rotated; a pixel is moved as one element, which is twice as fast."""
    whole = np.ascontiguousarray(pixels).view(f"V{pixels.shape[2]}")[..., 0]
    turned = np.ascontiguousarray(np.rot90(whole, times))
    return turned.view(np.uint8).reshape(*turned.shape, pixels.shape[2])


def rotated(scene: Scene, degrees: float) -> Scene:
    """Rotated about the center of the image, whose size stays; corners without pixels are black.

    A rotated box bounds the rotated ellipse in the box, which fits objects better than the rotated corners (Kalra et
    al. 2021, arXiv:2109.13488). Objects with their center outside of the image are removed.
    """
    height, width = scene.size
    masks, points = scene.masks, scene.keypoints
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

    def turn(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        x, y = x - width / 2, y - height / 2
        return x * cos + y * sin + width / 2, y * cos - x * sin + height / 2

    x1, y1, x2, y2 = scene.boxes.T
    x, y = turn((x1 + x2) / 2, (y1 + y2) / 2)
    across, down = (x2 - x1) / 2, (y2 - y1) / 2
    half = np.hypot(across * cos, down * sin), np.hypot(across * sin, down * cos)
    boxes = np.stack([x - half[0], y - half[1], x + half[0], y + half[1]], axis=1)
    if points is not None:  # x and y of pixel centers
        moved_x, moved_y = turn(points[..., 0] + 0.5, points[..., 1] + 0.5)
        inside = (moved_x >= 0) & (moved_x < width) & (moved_y >= 0) & (moved_y < height)
        points = np.where(inside[..., None], _moved(points, moved_x - 0.5, moved_y - 0.5), 0.0)
    result = replace(
        scene,
        image=rotated_image(scene.image, degrees),
        boxes=boxes.clip(0, [width, height, width, height]),
        masks=None if masks is None else lambda indices: _rotated_planes(masks(indices), degrees),
        keypoints=points,
    )
    return result.select(np.flatnonzero((x >= 0) & (x < width) & (y >= 0) & (y < height)))


def rotated_image(image: Tensor, degrees: float) -> Tensor:
    """A uint8 image [C, H, W] rotated with bilinear interpolation, channels last in memory."""
    pixels = np.ascontiguousarray(_channels_last(image))
    if pixels.shape[2] == 3:
        turned = np.asarray(Image.fromarray(pixels).rotate(degrees, Image.Resampling.BILINEAR))
    else:
        planes = [Image.fromarray(plane) for plane in np.moveaxis(pixels, 2, 0)]
        turned = np.stack([np.asarray(plane.rotate(degrees, Image.Resampling.BILINEAR)) for plane in planes], axis=2)
    return _channels_first(turned.copy())


def _rotated_planes(masks: NDArray[np.uint8], degrees: float) -> NDArray[np.uint8]:
    turned = [np.asarray(Image.fromarray(mask).rotate(degrees, Image.Resampling.NEAREST)) for mask in masks]
    return np.stack(turned) if turned else masks


def _channels_last(image: Tensor) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = image.permute(1, 2, 0).numpy()
    return pixels


def _channels_first(pixels: NDArray[np.uint8]) -> Tensor:
    """[C, H, W], with channels last in memory as in decoded images."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def _moved(points: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keypoints with other coordinates; those that are not labeled stay 0."""
    moved = np.stack([x, y, points[..., 2]], axis=-1)
    return np.where(points[..., 2:] > 0, moved, 0.0)
