"""Sizes and positions of the images and objects of a split, for reports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtdetr_tool.data.records import ImageRecord

GRID = 32  # cells per side of the position density


@dataclass(frozen=True)
class Statistics:
    """Of one split; crowd regions are not objects, and images of unknown size count only in `objects_per_image`."""

    image_sizes: NDArray[np.float64]  # [I, 2] width, height in pixels
    objects_per_image: NDArray[np.int64]  # [I]
    box_sizes: NDArray[np.float64]  # [N] square root of the share of the image's area, 0..1
    aspect_ratios: NDArray[np.float64]  # [N] width / height
    positions: NDArray[np.float64]  # [GRID, GRID] share of the box centers, row 0 at the top
    areas: dict[str, int]  # COCO's small, medium and large: objects


def measure(records: Iterable[ImageRecord]) -> Statistics:
    """Measure the images and boxes of a split."""
    sizes, counts, boxes, scales, areas = [], [], [np.zeros((0, 4))], [np.zeros((0, 2))], [np.zeros(0)]
    for record in records:
        single = ~record.iscrowd
        counts.append(int(single.sum()))
        if not record.width or not record.height:
            continue
        sizes.append((record.width, record.height))
        boxes.append(record.boxes[single])
        scales.append(np.broadcast_to(np.array([record.width, record.height], dtype=np.float64), (counts[-1], 2)))
        areas.append(record.area[single])
    box, scale, area = np.concatenate(boxes), np.concatenate(scales), np.concatenate(areas)
    extent = (box[:, 2:] - box[:, :2]).clip(min=0)
    centers = ((box[:, :2] + box[:, 2:]) / 2 / scale).clip(0, 1 - 1e-9)
    grid, _, _ = np.histogram2d(centers[:, 1], centers[:, 0], bins=GRID, range=((0, 1), (0, 1)))
    small, medium = int((area < 32**2).sum()), int((area < 96**2).sum())
    return Statistics(
        image_sizes=np.array(sizes, dtype=np.float64).reshape(-1, 2),
        objects_per_image=np.array(counts, dtype=np.int64),
        box_sizes=np.sqrt(extent.prod(axis=1) / scale.prod(axis=1)) if len(box) else np.zeros(0),
        aspect_ratios=extent[:, 0] / np.maximum(extent[:, 1], 1e-9),
        positions=grid / max(1.0, grid.sum()),
        areas={"small (< 32² px)": small, "medium": medium - small, "large (> 96² px)": len(area) - medium},
    )
