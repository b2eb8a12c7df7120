"""What is known about an image before its file is opened."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class ImageRecord:
    """One image and its objects, N of them, crowd regions included.

    `width` and `height` are those the annotations refer to; the file's own size is checked against them when it is
    read. `area` is COCO's (of the segmentation where there is one); it only sorts objects into small, medium, large.
    """

    path: str
    image_id: int
    width: int
    height: int
    boxes: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4)))  # [N, 4] xyxy pixels
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # [N] class index
    iscrowd: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))  # [N]
    area: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))  # [N] square pixels

    masks: list[bytes] | None = None  # of each object (see `ops/masks`); None where they were not read

    def __len__(self) -> int:
        return len(self.boxes)
