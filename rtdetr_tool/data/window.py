"""A rectangle on (or beyond) an image, and rendering it at the network's size.

Zoom-out and crop only move and resize the rectangle; pixels are processed once, at the end. The result equals padding,
cropping, flipping and resizing one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
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

    def visible(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of an image of this size that are in the window; empty if it is outside the image."""
        top, left = min(max(self.top, 0), height), min(max(self.left, 0), width)
        return slice(top, max(min(self.bottom, height), top)), slice(left, max(min(self.right, width), left))

    def clip(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """xyxy boxes of the image in the window's coordinates, clipped to it; boxes below one pixel are removed.

        Returns:
            The remaining boxes, and a mask of which input boxes they are.
        """
        limit = np.array([self.width, self.height] * 2, dtype=np.float64)
        moved = (boxes - [self.left, self.top] * 2).clip(0, limit)
        keep = ((moved[:, 2:] - moved[:, :2]) >= 1).all(axis=1)
        return moved[keep], keep


@dataclass(frozen=True)
class Placement:
    """Where the window of an image is in the network's input: resized to `inner`, at `offset` of `outer`.

    Sizes are (height, width), and the offset from the top left is (y, x). Images, masks and keypoints of one sample
    have the same placement.
    """

    window: Window
    inner: tuple[int, int]
    outer: tuple[int, int]
    mirrored: bool = False
    offset: tuple[int, int] = (0, 0)

    def image(self, image: Tensor) -> Tensor:
        """The network's input from a uint8 image [C, H, W]."""
        return render(image, self.window, self.inner, self.outer, self.mirrored, self.offset)

    def boxes(self, boxes: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """xyxy boxes [n, 4] in pixels of `outer` from [N, 4] in pixels of the image, and their indices.

        Boxes below one pixel of the window are removed.
        """
        corners, keep = self.window.clip(boxes)
        if self.mirrored:
            corners[:, [0, 2]] = self.window.width - corners[:, [2, 0]]
        scaled = corners * ([self.inner[1] / self.window.width, self.inner[0] / self.window.height] * 2)
        if self.offset != (0, 0):
            scaled += [self.offset[1], self.offset[0]] * 2
        return scaled, np.flatnonzero(keep)

    def masks(self, masks: NDArray[np.uint8]) -> Tensor:
        """bool [N, *outer] from masks [N, H, W] of 0 and 1."""
        return render_masks(masks, self.window, self.inner, self.outer, self.mirrored, self.offset)

    def keypoints(self, points: NDArray[np.float64], swaps: NDArray[np.int64]) -> Tensor:
        """float32 [N, P, 3] relative to `outer` from points [N, P, 3] in pixels of the image.

        Points outside the window are not labeled any more: all 0.

        Args:
            swaps: [N, P], the keypoint that takes the place of each one in a mirrored image.
        """
        x, y, visible = np.moveaxis(points, -1, 0)
        x, y = x - self.window.left, y - self.window.top
        if self.mirrored:
            # The coordinates are those of pixel centers, which are counted from 0.
            x, y, visible = (np.take_along_axis(part, swaps, axis=1) for part in (x, y, visible))
            x = self.window.width - 1 - x
        inside = (visible > 0) & (x >= 0) & (x < self.window.width) & (y >= 0) & (y < self.window.height)
        height, width = (inner / outer for inner, outer in zip(self.inner, self.outer, strict=True))
        top, left = (start / outer for start, outer in zip(self.offset, self.outer, strict=True))
        x, y = x * (width / self.window.width) + left, y * (height / self.window.height) + top
        moved = np.stack([x, y, visible], axis=-1)
        return torch.from_numpy(np.where(inside[..., None], moved, 0.0).astype(np.float32))


def render(
    image: Tensor,
    window: Window,
    inner: tuple[int, int],
    outer: tuple[int, int],
    mirrored: bool,
    offset: tuple[int, int] = (0, 0),
) -> Tensor:
    """The window resized to `inner` (height, width), optionally mirrored, at `offset` of a black canvas `outer`.

    Args:
        image: uint8 [C, H, W].
    """
    rows, columns = window.visible(*image.shape[-2:])
    part = image[:, rows, columns]
    top, left = rows.start - window.top, columns.start - window.left
    if mirrored:
        part, left = part.flip(-1), window.width - left - part.shape[-1]
    resized = _resize_on_black(part, (top, left), (window.height, window.width), inner)
    if inner == outer:
        return resized
    canvas = _black(*outer, len(image))
    canvas[:, offset[0] : offset[0] + inner[0], offset[1] : offset[1] + inner[1]] = resized
    return canvas


def render_masks(
    masks: np.ndarray,
    window: Window,
    inner: tuple[int, int],
    outer: tuple[int, int],
    mirrored: bool,
    offset: tuple[int, int] = (0, 0),
) -> Tensor:
    """Masks with the same transform as `render`: bool [N, *outer], nearest neighbor.

    Args:
        masks: [N, H, W] of 0 and 1, of the image passed to `render`.
    """
    rows, columns = _nearest(inner[0], window.height), _nearest(inner[1], window.width)
    rows, columns = window.top + rows, window.left + (window.width - 1 - columns if mirrored else columns)
    height, width = masks.shape[1:]
    rows, here_y = _inside(rows, height, offset[0])
    columns, here_x = _inside(columns, width, offset[1])
    canvas = np.zeros((len(masks), *outer), dtype=bool)
    for mask, target in zip(masks, canvas, strict=True):
        target[here_y, here_x] = mask[rows].take(columns, axis=1)  # much faster than both indices at once
    return torch.from_numpy(canvas)


def _inside(indices: NDArray[np.int64], size: int, offset: int) -> tuple[NDArray[np.int64], slice]:
    """The indices in 0..size-1, which are adjacent, and where they are after `offset`."""
    valid = np.flatnonzero((indices >= 0) & (indices < size))
    if not len(valid):
        return indices[:0], slice(0, 0)
    return indices[valid], slice(offset + int(valid[0]), offset + int(valid[-1]) + 1)


def _nearest(new: int, old: int) -> np.ndarray:
    """Indices of the `old` pixels that contain the centers of `new` pixels."""
    return ((np.arange(new) + 0.5) * (old / new)).astype(np.int64)


def _resize_on_black(part: Tensor, offset: tuple[int, int], canvas: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Put `part` on a black canvas (height, width) at `offset` (y, x) and resize the canvas to `size`.

    A large canvas is nearly all black. Like `resize`, this resamples columns first and then rows, but only the rows and
    columns that the part reaches.
    """
    if 0 in part.shape:  # the window is outside the image
        return _black(*size, len(part))
    height, width = part.shape[-2:]
    if (height, width) == canvas:
        return resize(_channels_last(part), size)
    wide = resize(_padded(part, offset[1], canvas[1], dim=2), (height, size[1]))
    scale = canvas[1] / size[1]  # a pixel of the result is at most this far from those it is an average of
    first = max(int((offset[1] - 1) / scale - 2), 0)
    last = min(int((offset[1] + width + 1) / scale + 3), size[1])
    columns = resize(_padded(wide[:, :, first:last], offset[0], canvas[0], dim=1), (size[0], last - first))
    return columns if last - first == size[1] else _padded(columns, first, size[1], dim=2)


def _padded(part: Tensor, start: int, length: int, dim: int) -> Tensor:
    """`part` in black, as long as `length` in one dimension."""
    shape = list(part.shape)
    shape[dim] = length
    canvas = _black(shape[1], shape[2], shape[0])
    canvas.narrow(dim, start, part.shape[dim]).copy_(part)
    return canvas


def _black(height: int, width: int, channels: int) -> Tensor:
    """Channels are last in memory, as in decoded images, because those are resized much faster."""
    return torch.zeros((height, width, channels), dtype=torch.uint8).permute(2, 0, 1)


def _channels_last(image: Tensor) -> Tensor:
    return image if image.stride(0) == 1 else image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
