"""Training augmentation, in the order of TAO and of the official RT-DETR code:

photometric distortion, zoom-out, IoU crop, scale jitter (of RF-DETR), sanitize, horizontal flip, resize, sanitize.

Random parameters follow torchvision v2 (`RandomPhotometricDistort`, `RandomZoomOut`, `RandomIoUCrop`) but come from the
caller's `numpy.random.Generator`, so that a sample is a function of its seed. Boxes are xyxy pixels until the last
step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rtdetr_tool.data.photometric import draw_distortion
from rtdetr_tool.data.preprocess import input_size, letterbox_size
from rtdetr_tool.data.window import Window, render, render_masks

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
    """Augments a uint8 image [3, H, W] with xyxy pixel boxes; returns the network's input and cxcywh 0..1 boxes.

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

    def __call__(
        self, image: Tensor, boxes: Tensor, labels: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.with_masks(image, boxes, labels, None, rng)[:3]

    def with_masks(
        self, image: Tensor, boxes: Tensor, labels: Tensor, masks: np.ndarray | None, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The same with masks [N, H, W] of 0 and 1, which are returned as bool [n, *size]."""
        image = draw_distortion(rng, self.distortion_prob)(image)
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
        corners, keep = window.clip(corners)
        kept = kept[keep]
        mirrored = bool(rng.random() < self.flip_prob)
        if mirrored:
            corners[:, [0, 2]] = window.width - corners[:, [2, 0]]
        inner, outer = self._sizes(window)
        scaled = corners * ([inner[1] / window.width, inner[0] / window.height] * 2)  # pixels of the output
        keep = large_enough(scaled)
        kept = kept[keep]
        return (
            render(image, window, inner, outer, mirrored),
            to_relative(torch.from_numpy(scaled[keep]), outer),
            labels[torch.from_numpy(kept)],
            None if masks is None else render_masks(masks[kept], window, inner, outer, mirrored),
        )

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
        for draw in rng.random((CROP_TRIALS, 4)).tolist():
            crop = _draw_crop(draw, window)
            if crop is None:
                continue
            inside = ((centers > (crop.left, crop.top)) & (centers < (crop.right, crop.bottom))).all(axis=1)
            if inside.any() and _best_iou(boxes[inside], crop) >= min_iou:
                return crop, inside


def _draw_crop(draw: Sequence[float], window: Window) -> Window | None:
    """A sub-window from four numbers 0..1; None if its aspect ratio is out of range."""
    low, high = CROP_SCALE
    width = int(window.width * (low + (high - low) * draw[0]))
    height = int(window.height * (low + (high - low) * draw[1]))
    if width < 1 or height < 1 or not CROP_ASPECT[0] <= width / height <= CROP_ASPECT[1]:
        return None
    left, top = int((window.width - width) * draw[2]), int((window.height - height) * draw[3])
    return Window(window.left + left, window.top + top, width, height)


def _best_iou(boxes: np.ndarray, crop: Window) -> float:
    frame = np.array([crop.left, crop.top, crop.right, crop.bottom], dtype=np.float64)
    sides = (np.minimum(boxes[:, 2:], frame[2:]) - np.maximum(boxes[:, :2], frame[:2])).clip(min=0)
    shared = sides.prod(axis=1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + crop.width * crop.height - shared
    return float((shared / union).max())


def large_enough(boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Mask of xyxy boxes that are at least `MIN_SIZE` wide and high."""
    large: NDArray[np.bool_] = np.logical_and.reduce(boxes[:, 2:] - boxes[:, :2] >= MIN_SIZE, axis=1)
    return large


def to_relative(boxes: Tensor, size: tuple[float, float]) -> Tensor:
    """xyxy pixels to float32 cxcywh 0..1 relative to (height, width), clipped to 0..1."""
    scale = torch.tensor([size[1], size[0]] * 2, dtype=torch.float64)
    low, high = (boxes.to(torch.float64) / scale).clamp(0, 1).chunk(2, dim=-1)
    return torch.cat([(low + high) / 2, high - low], dim=-1).to(torch.float32)
