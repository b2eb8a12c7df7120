"""The keypoints of a YOLO dataset: `kpt_shape`, `flip_idx` and `kpt_names` of its YAML file, values of its lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rtdetr_tool.data.coco_keypoints import MOST_KEYPOINTS
from rtdetr_tool.errors import DataError
from rtdetr_tool.messages import shortened
from rtdetr_tool.ops.keypoints import Pose, swaps_of_names


@dataclass(frozen=True)
class YoloPose:
    """The keypoints of the objects, as many for each class.

    Args:
        by_class: the pose of each class index.
        count: keypoints of an object.
        values: numbers of a keypoint: x, y (2) or x, y, visibility (3).
    """

    by_class: dict[int, Pose]
    count: int
    values: int

    @property
    def length(self) -> int:
        """Numbers of all keypoints of a line."""
        return self.count * self.values

    def expected(self) -> str:
        """The keypoints of a line, for messages."""
        each = "x, y, visibility" if self.values == 3 else "x, y"
        return f"{self.length} values of {self.count} keypoints ({each}; kpt_shape)"

    def in_pixels(self, numbers: Sequence[float], width: int, height: int) -> list[float]:
        """x, y, visibility of each keypoint in pixels, from the fractions of a line.

        Without visibilities, a keypoint at 0, 0 or with a negative coordinate is not labeled.
        """
        points: list[float] = []
        for start in range(0, len(numbers), self.values):
            x, y = numbers[start : start + 2]
            labeled = min(x, y) >= 0 and (x, y) != (0, 0)
            visibility = numbers[start + 2] if self.values == 3 else 2 * labeled
            points += (x * width, y * height, visibility) if visibility else (0, 0, 0)
        return points


def read_pose(content: Mapping[str, Any], class_names: Sequence[str], path: str) -> YoloPose | None:
    """The keypoints that a YAML file declares (its scalars are text); None without `kpt_shape`."""
    shape = content.get("kpt_shape")
    if shape is None:
        return None
    numbers = _integers(shape)
    if len(numbers) != 2 or not 1 <= numbers[0] <= MOST_KEYPOINTS or numbers[1] not in (2, 3):
        raise DataError(
            f"kpt_shape in {path} is {shortened(shape)}; expected [keypoints, values], with 1 to {MOST_KEYPOINTS} "
            "keypoints and 2 (x, y) or 3 (x, y, visibility) values."
        )
    count = numbers[0]
    swaps = _swaps(content.get("flip_idx"), count, path)
    poses = {}
    for index in range(len(class_names)):
        names = _names(content.get("kpt_names"), index, count, path)
        poses[index] = Pose(names, (), swaps_of_names(names) if swaps is None else swaps)
    return YoloPose(poses, count, numbers[1])


def _integers(values: Any) -> list[int]:
    """The numbers of a list of texts; empty if it is not one of integers."""
    if not isinstance(values, list) or not all(isinstance(text, str) and text.strip().isdecimal() for text in values):
        return []
    return [int(text) for text in values if len(text) < 10]


def _swaps(flip_idx: Any, count: int, path: str) -> tuple[int, ...] | None:
    if not flip_idx:  # also an empty list, as in Ultralytics' programs
        return None
    swaps = _integers(flip_idx)
    if len(swaps) != count or any(other >= count or swaps[other] != index for index, other in enumerate(swaps)):
        raise DataError(
            f"flip_idx in {path} is {shortened(flip_idx)}; expected {count} indices (kpt_shape): for each keypoint the "
            "one on the other side of the body, or itself, so that a is the other side of b if b is that of a."
        )
    return tuple(swaps)


def _names(given: Any, index: int, count: int, path: str) -> tuple[str, ...]:
    """The names of a class: those of its index, or one list for all classes."""
    names = given.get(str(index)) if isinstance(given, dict) else given
    if not names:
        return tuple(f"keypoint_{number}" for number in range(1, count + 1))
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"kpt_names in {path} has {shortened(names)} for class {index}; expected {count} names (kpt_shape)."
        )
    return tuple(name.strip() for name in names)
