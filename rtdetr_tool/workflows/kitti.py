"""Files that inference leaves: KITTI labels and COCO results."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.keypoints import coco_points
from rtdetr_tool.ops.masks import encode_masks, to_coco
from rtdetr_tool.ops.structures import Detections

logger = logging.getLogger(__name__)


def kitti_names(class_map: ClassMap) -> dict[int, str]:
    """The names of the classes in KITTI files by index, without white space and unique.

    A name that another class has without white space (`a b`, `a_b`) gets its class index appended, with a warning.
    """
    cleaned = {entry.index: _without_spaces(entry.name) or str(entry.index) for entry in class_map.entries}
    names: dict[int, str] = {}
    for entry in sorted(
        class_map.entries, key=lambda entry: cleaned[entry.index] != entry.name
    ):  # unchanged ones first
        name = cleaned[entry.index]
        while name in names.values():
            name += f"_{entry.index}"
        if name != cleaned[entry.index]:
            logger.warning(
                "Class %d (%r) is %s in KITTI labels, because another class is %s there. Rename one of them to have "
                "other names.", entry.index, entry.name, name, cleaned[entry.index],
            )  # fmt: skip
        names[entry.index] = name
    return names


def _without_spaces(name: str) -> str:
    return "_".join(name.split())


def kitti_lines(detections: Detections, name_of: Callable[[int], str]) -> list[str]:
    """One KITTI line of 16 fields per detection: name, truncation, occlusion, alpha, box (pixels), 3-D fields, score.

    White space in a class name becomes `_`, so that a line always splits into 16 fields.
    """
    lines = []
    for box, score, label in zip(
        detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True
    ):
        name = _without_spaces(name_of(label)) or str(label)
        corners = " ".join(f"{value:.3f}" for value in box)
        lines.append(f"{name} 0.00 0 0.00 {corners} 0.00 0.00 0.00 0.00 0.00 0.00 0.00 {score:.3f}")
    return lines


class ShapePart(TypedDict, total=False):
    segmentation: Mapping[str, Any]  # COCO's run lengths, for models with masks
    keypoints: list[float]  # x, y in pixels and probability of each keypoint, for models with keypoints


class CocoRow(ShapePart):
    """A detection in COCO's format of results, without the image."""

    category_id: int | None
    bbox: list[float]  # x, y, width, height in pixels
    score: float


def coco_rows(detections: Detections, class_map: ClassMap) -> list[CocoRow]:
    """The detections as COCO results without `image_id`; all must have a category."""
    shapes: list[ShapePart] = [{}] * len(detections)
    if detections.masks is not None:
        size = detections.masks.size
        shapes = [{"segmentation": to_coco(counts, size)} for counts in encode_masks(detections.masks)]
    elif detections.keypoints is not None:
        shapes = [{"keypoints": [round(value, 3) for value in points]} for points in coco_points(detections)]
    columns = (detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), shapes)
    return [
        {
            "category_id": class_map.category_id_of(label),
            "bbox": [round(value, 3) for value in (left, top, right - left, bottom - top)],
            "score": round(score, 6),
            **shape,
        }
        for (left, top, right, bottom), score, label, shape in zip(*columns, strict=True)
    ]


def with_category(detections: Detections, class_map: ClassMap) -> Detections:
    """Without the detections of unused outputs of the network, which have no category."""
    return detections.select([class_map.category_id_of(label) is not None for label in detections.labels.tolist()])


def output_stems(paths: Sequence[str]) -> dict[str, str]:
    """A distinct relative name without suffix for each image path.

    The stem alone where it is unique; otherwise the path below the common folder, and with the suffix when two files
    differ only in it. Upper and lower case count as equal, as they do on some file systems.
    """
    absolute = {path: Path(os.path.abspath(path)) for path in paths}
    root = Path(os.path.commonpath([p.parent for p in absolute.values()])) if absolute else Path()
    candidates = (
        lambda p: p.stem,
        lambda p: str(p.relative_to(root).with_suffix("")),
        lambda p: str(p.relative_to(root)).replace(".", "_"),
    )
    result: dict[str, str] = {}
    left = list(absolute)
    for candidate in candidates:
        names: dict[str, list[str]] = {}
        for path in left:
            names.setdefault(candidate(absolute[path]).lower(), []).append(path)
        taken = {name.lower() for name in result.values()}
        for name, group in names.items():
            if len(group) == 1 and name not in taken:
                result[group[0]] = candidate(absolute[group[0]])
        left = [path for path in left if path not in result]
    taken = {name.lower() for name in result.values()}
    for path in left:  # the same file under two spellings, or names that differ only in . and _ or in case
        stem = absolute[path].stem
        name = next(name for name in (f"{stem}_{n}" for n in itertools.count(2)) if name.lower() not in taken)
        taken.add(name.lower())
        result[path] = name
    return {path: result[path] for path in paths}
