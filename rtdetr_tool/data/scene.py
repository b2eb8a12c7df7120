"""An image with its objects, before and after it is placed in the network's input.

Shape legend: C channels, N objects, P keypoints of an object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rtdetr_tool.catalog import KEYPOINTS, MASKS
from rtdetr_tool.data.records import ImageRecord
from rtdetr_tool.data.window import Placement
from rtdetr_tool.ops.masks import decode

MaskReader = Callable[[NDArray[np.int64]], NDArray[np.uint8]]


@dataclass(frozen=True)
class Scene:
    """A decoded image and its objects in pixels of the image, without crowd regions.

    Masks are decoded on demand, because most steps remove objects.
    """

    image: Tensor  # uint8 [C, H, W]
    boxes: NDArray[np.float64]  # [N, 4] xyxy pixels
    labels: NDArray[np.int64]  # [N] class index
    masks: MaskReader | None = None  # indices [n] -> [n, H, W] of 0 and 1; None if masks were not read
    keypoints: NDArray[np.float64] | None = None  # [N, P, 3] x, y of pixel centers and visibility
    swaps: NDArray[np.int64] | None = None  # [N, P] the keypoint that takes the place of each one in a mirrored image

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        return self.image.shape[-2], self.image.shape[-1]

    def select(self, keep: NDArray[np.int64]) -> Scene:
        """The scene with the objects at these indices."""
        masks = self.masks
        return replace(
            self,
            boxes=self.boxes[keep],
            labels=self.labels[keep],
            masks=None if masks is None else lambda indices: masks(keep[indices]),
            keypoints=None if self.keypoints is None else self.keypoints[keep],
            swaps=None if self.swaps is None else self.swaps[keep],
        )

    def shapes(self, kept: NDArray[np.int64], placement: Placement) -> Shapes:
        """Masks and keypoints of these objects in the network's input."""
        masks = None if self.masks is None else placement.masks(self.masks(kept))
        if self.keypoints is None or self.swaps is None:
            return Shapes(masks)
        return Shapes(masks, placement.keypoints(self.keypoints[kept], self.swaps[kept]))


@dataclass(frozen=True)
class Shapes:
    """Masks and keypoints of objects in the network's input; None = not read."""

    masks: Tensor | None = None  # bool [N, H, W]
    keypoints: Tensor | None = None  # float32 [N, P, 3], relative x and y, visibility

    def of_kind(self, kind: str) -> dict[str, Tensor]:
        """The fields of a `Target` for a model that predicts this kind, one of `catalog.PREDICTS`."""
        if kind == MASKS and self.masks is not None:
            return {MASKS: self.masks}
        return {KEYPOINTS: self.keypoints} if kind == KEYPOINTS and self.keypoints is not None else {}

    def select(self, keep: Tensor) -> Shapes:
        return Shapes(*(None if part is None else part[keep] for part in (self.masks, self.keypoints)))

    @staticmethod
    def joined(parts: list[Shapes]) -> Shapes:
        """The shapes of all parts, one after the other."""
        masks = [part.masks for part in parts if part.masks is not None]
        keypoints = [part.keypoints for part in parts if part.keypoints is not None]
        return Shapes(torch.cat(masks) if masks else None, torch.cat(keypoints) if keypoints else None)


@dataclass(frozen=True)
class PlacedScene:
    """The network's input and its objects."""

    image: Tensor  # uint8 [C, H, W]
    boxes: Tensor  # float32 [N, 4] cxcywh 0..1
    labels: Tensor  # int64 [N]
    shapes: Shapes = Shapes()


def scene_of(record: ImageRecord, image: Tensor, with_masks: bool, swaps: NDArray[np.int64] | None) -> Scene:
    """The objects of a record, with keypoints if `swaps` [classes, P] is given."""
    objects, (height, width) = np.flatnonzero(~record.iscrowd), image.shape[-2:]
    labels = record.labels[objects]

    def masks(indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        counts = record.masks or []
        decoded = [decode(counts[objects[index]], height, width) for index in indices]
        return np.stack(decoded) if decoded else np.zeros((0, height, width), np.uint8)

    scene = Scene(image, record.boxes[objects], labels, masks if with_masks else None)
    if swaps is None:
        return scene
    points = record.keypoints
    points = np.zeros((len(record), swaps.shape[1], 3)) if points is None else points
    return replace(scene, keypoints=points[objects], swaps=swaps[labels])
