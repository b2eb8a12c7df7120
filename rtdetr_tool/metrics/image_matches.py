"""Detections of each image, and which of them match an object at IoU 0.5."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rtdetr_tool.metrics.operating_point import match_detections


class ImageDetections(NamedTuple):
    """Detections of one image, in COCO's format."""

    rows: NDArray[np.float64]  # [K, 6] x, y, width, height, score, category id
    shapes: list[dict[str, Any]] | None = None  # COCO's `segmentation` or `keypoints` per detection, if predicted


@dataclass(frozen=True)
class ImageMatches:
    """The detections of one image, matched with its objects at IoU 0.5."""

    image_id: int
    scores: NDArray[np.float64]  # [K]
    categories: NDArray[np.float64]  # [K] category ids
    correct: NDArray[np.bool_]  # [K]
    counted: NDArray[np.bool_]  # [K], false on crowd regions
    objects: int  # of the scored categories, without crowd regions


def match_images(
    detections: Mapping[int, ImageDetections], annotations: Iterable[Mapping[str, Any]], category_ids: Sequence[int]
) -> list[ImageMatches]:
    """Each image's detections matched with its annotations; `category_ids` are scored."""
    truth: dict[int, list[Any]] = {}
    for annotation in annotations:
        truth.setdefault(annotation["image_id"], []).append(annotation)
    matches = []
    for image_id, (rows, _) in detections.items():
        objects = truth.get(image_id, [])
        boxes = np.array([a["bbox"] for a in objects], dtype=np.float64).reshape(-1, 4)
        categories = np.array([a["category_id"] for a in objects])
        crowd = np.array([bool(a.get("iscrowd")) for a in objects], dtype=bool)
        correct, counted = match_detections(rows[:, :4], rows[:, 4], rows[:, 5], boxes, categories, crowd)
        scored = sum(a["category_id"] in category_ids and not a.get("iscrowd") for a in objects)
        matches.append(ImageMatches(image_id, rows[:, 4], rows[:, 5], correct, counted, scored))
    return matches
