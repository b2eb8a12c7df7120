"""Read keypoints of COCO files: names and skeletons of categories, and x, y, visibility of objects."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rtdetr_tool.data.source import OVERHANG, AnnotatedImage, Source
from rtdetr_tool.errors import DataError
from rtdetr_tool.messages import encodable, shortened
from rtdetr_tool.ops.keypoints import Pose, skeleton_of, swaps_of_names

MOST_KEYPOINTS = 1000  # per category


class PoseReader:
    """The keypoints of one file, which are added to a source.

    A category without `keypoints` whose objects have some gets as many, without names.
    """

    def __init__(self, path: str, source: Source) -> None:
        self.path, self.source, self.repairs = path, source, source.repairs
        self._unnamed: dict[int, int] = {}  # category id -> the largest number of keypoints of an object

    def read_categories(self, entries: Sequence[Mapping[str, Any]], joined: Mapping[int, int]) -> None:
        """The poses of the categories; `joined` has the source's id for each id of the file."""
        for number, entry in enumerate(entries):
            names = entry.get("keypoints")
            if not names:
                continue
            where = f"categories[{number}]"
            if not isinstance(names, list) or len(names) > MOST_KEYPOINTS:
                raise DataError(
                    f"{where}.keypoints in {self.path} is {shortened(names)}; expected a list of at most "
                    f"{MOST_KEYPOINTS} names."
                )
            texts = tuple(encodable(name) for name in names)
            skeleton = skeleton_of(entry.get("skeleton") or [], len(texts))
            if skeleton is None:
                self.repairs.add("skeleton_malformed", f"{where} of {self.path}")
            pose = Pose(texts, skeleton or (), swaps_of_names(texts))
            self._add(joined[int(entry["id"])], pose)

    def _add(self, category_id: int, pose: Pose) -> None:
        known = self.source.poses.setdefault(category_id, pose)
        if len(known.names) != len(pose.names):
            raise DataError(
                f"Category {self.source.categories[category_id]!r} has {len(pose.names)} keypoints in {self.path}, but "
                f"{len(known.names)} in an earlier file; expected the same in all files."
            )

    def points(self, values: Any, category_id: int, image: AnnotatedImage, where: str) -> tuple[float, ...]:
        """x, y, visibility of each keypoint of an object; empty if none are labeled."""
        pose = self.source.poses.get(category_id)
        if values is None or values == []:
            if pose is not None:
                self.repairs.add("keypoints_missing", where)
            return ()
        points = _triples(values)
        if points is None or (pose is not None and len(points) != len(pose.names)) or len(points) > MOST_KEYPOINTS:
            self.repairs.add("keypoints_malformed", where)
            return ()
        if pose is None:
            self._unnamed[category_id] = max(self._unnamed.get(category_id, 0), len(points))
        kept: list[float] = []
        for x, y, visibility in points:
            outside = visibility > 0 and not _is_inside(x, y, image)
            if outside:
                self.repairs.add("keypoint_outside", where)
            kept += (x, y, visibility) if visibility > 0 and not outside else (0.0, 0.0, 0.0)
        return tuple(kept) if any(kept[2::3]) else ()

    def complete(self) -> None:
        """Add poses without names to the categories whose objects have keypoints."""
        for category_id, count in self._unnamed.items():
            self._add(category_id, Pose(tuple(f"keypoint_{number}" for number in range(1, count + 1))))


def _triples(values: Any) -> list[tuple[float, float, float]] | None:
    """x, y, visibility from COCO's flat list; None if it is not one."""
    if not isinstance(values, list) or len(values) % 3 or any(type(value) not in (int, float) for value in values):
        return None
    try:
        numbers = list(map(float, values))
    except OverflowError:
        return None
    triples = list(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))
    if not all(map(math.isfinite, numbers)) or any(visibility not in (0, 1, 2) for _, _, visibility in triples):
        return None
    return triples


def _is_inside(x: float, y: float, image: AnnotatedImage) -> bool:
    """Whether a point is in its image (size 0 means unknown); annotation tools round."""
    width, height = image.width or math.inf, image.height or math.inf
    return -OVERHANG <= x <= width + OVERHANG and -OVERHANG <= y <= height + OVERHANG
