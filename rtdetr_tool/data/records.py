"""An image and its objects as annotated, before the image file is opened."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class ImageRecord:
    """One image and its N objects, including crowd regions.

    `width` and `height` are the size that the annotations refer to; the image file is checked against it when it is
    read. `area` is COCO's area (of the segmentation, if any) and only sorts objects into small, medium and large.
    """

    path: str
    image_id: int
    width: int
    height: int
    boxes: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4)))  # [N, 4] xyxy pixels
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # [N] class index
    iscrowd: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))  # [N]
    area: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))  # [N] square pixels

    masks: list[bytes] | None = None  # per object (see `ops/masks`); None if masks were not read
    # [N, P, 3] x, y in pixels and COCO's visibility, all 0 if not labeled; None if keypoints were not read
    keypoints: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.boxes)
