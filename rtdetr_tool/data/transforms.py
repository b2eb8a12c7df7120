"""Augmentation of one training image, in the order of TAO and of the official RT-DETR code:

photometric distortion, zoom-out, IoU crop, scale jitter (of RF-DETR), sanitize, horizontal flip, resize, sanitize.
Before them come vertical flip and rotations (`orientation`).

Random parameters follow torchvision v2 (`RandomPhotometricDistort`, `RandomZoomOut`, `RandomIoUCrop`) but come from the
caller's `numpy.random.Generator`, so that a sample is a function of its seed. Boxes are xyxy pixels until the last
step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rtdetr_tool.data.orientation import Orientation
from rtdetr_tool.data.photometric import Distortion, draw_distortion
from rtdetr_tool.data.preprocess import input_size, letterbox_size
from rtdetr_tool.data.scene import PlacedScene, Scene
from rtdetr_tool.data.window import Placement, Window

ZOOM_RANGE = (1.0, 4.0)
MIN_SIZE = 1.0  # pixels; boxes with a smaller width or height are removed

CROP_SCALE = (0.3, 1.0)
CROP_ASPECT = (0.5, 2.0)
CROP_OPTIONS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)  # minimum IoU with some object; 1 means no crop
CROP_TRIALS = 40

JITTER_SIDES = (400, 500, 600)  # pixels of the shorter side
JITTER_CROP = (384, 600)  # pixels of the square's side


@dataclass
class TrainTransform:
    """Augments a uint8 image [C, H, W] with xyxy pixel boxes; returns the network's input and cxcywh 0..1 boxes.

    `size` is (height, width); with `preserve_aspect_ratio` the image is letterboxed as in evaluation. Areas of zoom-out
    and padding are black (0), as in TAO.
    """

    size: tuple[int, int]
    distortion_prob: float = 0.8
    iou_crop_prob: float = 0.8
    preserve_aspect_ratio: bool = False
    zoom_out_prob: float = 0.5
    flip_prob: float = 0.5
    scale_jitter_prob: float = 0.0
    orientation: Orientation = field(default_factory=Orientation)
    first: Callable[[Scene, np.random.Generator], Scene] | None = None  # on the decoded image, before all others

    def __call__(
        self, image: Tensor, boxes: Tensor, labels: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.placed(image, boxes, labels, rng)[:3]

    def placed(
        self, image: Tensor, boxes: Tensor, labels: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Placement, NDArray[np.int64]]:
        """The same with the placement of the image, and the indices of the remaining boxes."""
        distort = draw_distortion(rng, self.distortion_prob)
        height, width = image.shape[-2:]
        window = Window(0, 0, width, height)
        corners, kept = boxes.numpy().astype(np.float64), np.arange(len(boxes))
        if rng.random() < self.zoom_out_prob:
            window = draw_zoom_out(rng, window)
        if rng.random() < self.iou_crop_prob:
            window, keep = draw_iou_crop(rng, window, corners)
            corners, kept = corners[keep], kept[keep]
        if self.scale_jitter_prob and rng.random() < self.scale_jitter_prob:
            window = draw_scale_jitter(rng, window)
        mirrored = bool(rng.random() < self.flip_prob)
        inner, outer = self._sizes(window)
        placement = Placement(window, inner, outer, mirrored)
        scaled, remaining = placed_boxes(corners, placement)
        kept = kept[remaining]
        pixels = placed_image(image, placement, distort)
        return pixels, torch.from_numpy(to_relative(scaled, outer)), labels[torch.from_numpy(kept)], placement, kept

    def scene(self, scene: Scene, rng: np.random.Generator) -> PlacedScene:
        """The same with masks and keypoints, after `oriented`."""
        scene = self.oriented(scene, rng)
        boxes, labels = torch.from_numpy(scene.boxes), torch.from_numpy(scene.labels)
        image, boxes, labels, placement, kept = self.placed(scene.image, boxes, labels, rng)
        return PlacedScene(image, boxes, labels, scene.shapes(kept, placement))

    def oriented(self, scene: Scene, rng: np.random.Generator) -> Scene:
        """The steps on the whole image, before it is placed."""
        return self.orientation(scene if self.first is None else self.first(scene, rng), rng)

    def without_strong_steps(self) -> TrainTransform:
        """Only flips, rotations by 90 degrees and resizing."""
        orientation = replace(self.orientation, rotation_prob=0.0)
        return replace(
            self, distortion_prob=0.0, iou_crop_prob=0.0, zoom_out_prob=0.0, scale_jitter_prob=0.0,
            orientation=orientation, first=None,
        )  # fmt: skip

    def _sizes(self, window: Window) -> tuple[tuple[int, int], tuple[int, int]]:
        """(height, width) of the resized window and of the whole output."""
        outer = input_size(self.size, self.preserve_aspect_ratio)
        if not self.preserve_aspect_ratio:
            return outer, outer
        return letterbox_size((window.height, window.width), outer[0]), outer


def draw_zoom_out(rng: np.random.Generator, window: Window) -> Window:
    """A canvas with 1 to 4 times the window's sides and the window at a random position."""
    factor = rng.uniform(*ZOOM_RANGE)
    width, height = int(window.width * factor), int(window.height * factor)
    across, down = rng.random(2)
    left, top = int((width - window.width) * across), int((height - window.height) * down)
    return Window(window.left - left, window.top - top, width, height)


def draw_scale_jitter(rng: np.random.Generator, window: Window) -> Window:
    """A square of the window, as DETR draws it (Carion et al. 2020, arXiv:2005.12872) in RF-DETR's variant.

    The window is scaled such that its shorter side has one of `JITTER_SIDES` pixels, and the square's side is drawn
    from `JITTER_CROP`, at most the shorter side. The image is not resized here: the square is returned in its pixels.
    """
    shorter = min(window.width, window.height)
    scaled = int(rng.choice(JITTER_SIDES))
    low, high = min(JITTER_CROP[0], scaled), min(JITTER_CROP[1], scaled)
    side = min(max(round(int(rng.integers(low, high + 1)) * shorter / scaled), 1), shorter)
    left, top = int(rng.integers(0, window.width - side + 1)), int(rng.integers(0, window.height - side + 1))
    return Window(window.left + left, window.top + top, side, side)


def draw_iou_crop(rng: np.random.Generator, window: Window, boxes: np.ndarray) -> tuple[Window, np.ndarray]:
    """SSD's crop (Liu et al. 2016, arXiv:1512.02325): a part of the window with a minimum IoU with some object.

    Args:
        boxes: [N, 4] xyxy, in the coordinates of the image that `window` is on.

    Returns:
        The crop and a mask of the boxes with their center in it (all boxes if the window is not cropped).
    """
    all_boxes = np.ones(len(boxes), dtype=bool)
    if not len(boxes):
        return window, all_boxes
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    while True:
        min_iou = CROP_OPTIONS[rng.integers(len(CROP_OPTIONS))]
        if min_iou >= 1:
            return window, all_boxes
        crops = _crops(rng.random((CROP_TRIALS, 4)), window)
        inside = ((centers > crops[:, None, :2]) & (centers < crops[:, None, 2:])).all(axis=2)  # [crops, boxes]
        best = np.where(inside, _pairwise_iou(crops, boxes), -1).max(axis=1)
        if (good := best >= min_iou).any():
            first = int(good.argmax())
            left, top, right, bottom = crops[first].tolist()
            return Window(left, top, right - left, bottom - top), inside[first]


def _crops(draws: NDArray[np.float64], window: Window) -> NDArray[np.int64]:
    """Sub-windows [n, 4] (xyxy) from four numbers 0..1 each, without those with an aspect ratio out of range."""
    sides, origin = np.array([window.width, window.height]), np.array([window.left, window.top])
    low, high = CROP_SCALE
    size = (sides * (low + (high - low) * draws[:, :2])).astype(np.int64)
    start = ((sides - size) * draws[:, 2:]).astype(np.int64) + origin
    aspect = size[:, 0] / np.maximum(size[:, 1], 1)
    valid = (size >= 1).all(axis=1) & (aspect >= CROP_ASPECT[0]) & (aspect <= CROP_ASPECT[1])
    return np.concatenate([start, start + size], axis=1)[valid]


def _pairwise_iou(crops: NDArray[np.int64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    sides = np.minimum(boxes[:, 2:], crops[:, None, 2:]) - np.maximum(boxes[:, :2], crops[:, None, :2])
    shared = sides.clip(min=0).prod(axis=2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (crops[:, 2:] - crops[:, :2]).prod(axis=1)[:, None]
    iou: NDArray[np.float64] = shared / (areas - shared)
    return iou


def placed_boxes(boxes: NDArray[np.float64], placement: Placement) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """xyxy boxes of the image in pixels of the network's input, and their indices; too small ones are removed."""
    scaled, kept = placement.boxes(boxes)
    keep = large_enough(scaled)
    return scaled[keep], kept[keep]


def placed_image(image: Tensor, placement: Placement, distort: Distortion) -> Tensor:
    """The network's input from a uint8 image [3, H, W]; only its visible part is distorted."""
    window = placement.window
    rows, columns = window.visible(*image.shape[-2:])
    visible = Window(window.left - columns.start, window.top - rows.start, window.width, window.height)
    return replace(placement, window=visible).image(distort(image, rows, columns))


def large_enough(boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Mask of xyxy boxes that are at least `MIN_SIZE` wide and high."""
    large: NDArray[np.bool_] = np.logical_and.reduce(boxes[:, 2:] - boxes[:, :2] >= MIN_SIZE, axis=1)
    return large


def to_relative(boxes: NDArray[np.float64], size: tuple[float, float]) -> NDArray[np.float32]:
    """xyxy pixels to float32 cxcywh 0..1 relative to (height, width), clipped to 0..1."""
    scale = np.array([size[1], size[0]] * 2, dtype=np.float64)
    low, high = np.split((boxes / scale).clip(0, 1), 2, axis=-1)
    return np.concatenate([(low + high) / 2, high - low], axis=-1).astype(np.float32)
