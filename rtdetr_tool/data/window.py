"""A rectangle on (and around) an image, and its rendering at the network's size.

Zoom-out and crop only move and resize the rectangle; the pixels are touched once, at the end. This gives what padding,
cropping, flipping and resizing one after the other would give.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rtdetr_tool.data.preprocess import resize


@dataclass(frozen=True)
class Window:
    """In whole pixels of the image it was made for; it may reach beyond the image."""

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
        """xyxy boxes of the image in the window's coordinates, cut at its border; those below one pixel removed.

        Returns:
            The boxes that remain and a mask of which of the given ones they are.
        """
        limit = np.array([self.width, self.height] * 2, dtype=np.float64)
        moved = (boxes - [self.left, self.top] * 2).clip(0, limit)
        keep = ((moved[:, 2:] - moved[:, :2]) >= 1).all(axis=1)
        return moved[keep], keep


def render(image: Tensor, window: Window, inner: tuple[int, int], outer: tuple[int, int], mirrored: bool) -> Tensor:
    """The window at `inner` (height, width), mirrored if asked for, top left on black of size `outer`.

    Args:
        image: uint8 [3, H, W].
    """
    part = _cut(image, window)
    if mirrored:
        part = part.flip(-1)
    picture = resize(part, inner)
    if inner == outer:
        return picture.contiguous()
    canvas = picture.new_zeros((3, *outer))
    canvas[:, : inner[0], : inner[1]] = picture
    return canvas


def render_masks(
    masks: np.ndarray, window: Window, inner: tuple[int, int], outer: tuple[int, int], mirrored: bool
) -> Tensor:
    """Masks as `render` shows their image: bool [N, *outer], each pixel what the mask is at its centre.

    Args:
        masks: [N, H, W] of 0 and 1, of the image that `render` is given.
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
    """Of `old` pixels, those in which the centres of `new` pixels lie."""
    return ((np.arange(new) + 0.5) * (old / new)).astype(np.int64)


def _cut(image: Tensor, window: Window) -> Tensor:
    """The window's pixels, black where it is beyond the image; channels last in memory, which resizes much faster."""
    height, width = image.shape[-2:]
    left, top = max(window.left, 0), max(window.top, 0)
    right, bottom = max(min(window.right, width), left), max(min(window.bottom, height), top)
    part = image[:, top:bottom, left:right]
    if (part.shape[-2], part.shape[-1]) == (window.height, window.width) and image.stride(0) == 1:
        return part
    canvas = image.new_zeros((window.height, window.width, 3)).permute(2, 0, 1)
    if 0 in part.shape:  # nothing of the image is in the window
        return canvas
    canvas[:, top - window.top : bottom - window.top, left - window.left : right - window.left] = part
    return canvas
