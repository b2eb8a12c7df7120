"""A rectangle on (or beyond) an image, and rendering it at the network's size.

Zoom-out and crop only move and resize the rectangle; pixels are processed once, at the end. The result equals padding,
cropping, flipping and resizing one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rtdetr_tool.data.preprocess import resize


@dataclass(frozen=True)
class Window:
    """A rectangle in whole pixels of an image; it may extend beyond the image."""

    left: int
    top: int
    width: int
    height: int

    @property
    def right(self) -> int:
        return self.left + self.width

    @property
    def bottom(self) -> int:
        return self.top + self.height

    def clip(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """xyxy boxes of the image in the window's coordinates, clipped to it; boxes below one pixel are removed.

        Returns:
            The remaining boxes, and a mask of which input boxes they are.
        """
        limit = np.array([self.width, self.height] * 2, dtype=np.float64)
        moved = (boxes - [self.left, self.top] * 2).clip(0, limit)
        keep = ((moved[:, 2:] - moved[:, :2]) >= 1).all(axis=1)
        return moved[keep], keep


def render(image: Tensor, window: Window, inner: tuple[int, int], outer: tuple[int, int], mirrored: bool) -> Tensor:
    """The window resized to `inner` (height, width), optionally mirrored, at the top left of a black canvas `outer`.

    Args:
        image: uint8 [3, H, W].
    """
    part = _cut(image, window)
    if mirrored:
        part = part.flip(-1)
    resized = resize(part, inner)
    if inner == outer:
        return resized
    canvas = resized.new_zeros((*outer, 3)).permute(2, 0, 1)  # channels last in memory, like everything before
    canvas[:, : inner[0], : inner[1]] = resized
    return canvas


def render_masks(
    masks: np.ndarray, window: Window, inner: tuple[int, int], outer: tuple[int, int], mirrored: bool
) -> Tensor:
    """Masks with the same transform as `render`: bool [N, *outer], nearest neighbor.

    Args:
        masks: [N, H, W] of 0 and 1, of the image passed to `render`.
    """
    rows = _nearest(inner[0], window.height)
    columns = _nearest(inner[1], window.width)
    rows, columns = window.top + rows, window.left + (window.width - 1 - columns if mirrored else columns)
    canvas = np.zeros((len(masks), *outer), dtype=bool)
    here_y, here_x = ((at >= 0) & (at < size) for at, size in zip((rows, columns), masks.shape[1:], strict=True))
    inside = np.ix_(np.arange(len(masks)), np.flatnonzero(here_y), np.flatnonzero(here_x))
    canvas[inside] = masks[:, rows[here_y][:, None], columns[here_x]]
    return torch.from_numpy(canvas)


def _nearest(new: int, old: int) -> np.ndarray:
    """Indices of the `old` pixels that contain the centers of `new` pixels."""
    return ((np.arange(new) + 0.5) * (old / new)).astype(np.int64)


def _cut(image: Tensor, window: Window) -> Tensor:
    """Pixels of the window, black beyond the image; channels last in memory, which resizes much faster."""
    height, width = image.shape[-2:]
    left, top = max(window.left, 0), max(window.top, 0)
    right, bottom = max(min(window.right, width), left), max(min(window.bottom, height), top)
    part = image[:, top:bottom, left:right]
    if (part.shape[-2], part.shape[-1]) == (window.height, window.width) and image.stride(0) == 1:
        return part
    canvas = image.new_zeros((window.height, window.width, 3)).permute(2, 0, 1)
    if 0 in part.shape:  # the window is outside the image
        return canvas
    canvas[:, top - window.top : bottom - window.top, left - window.left : right - window.left] = part
    return canvas
