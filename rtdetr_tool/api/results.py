"""The results of `predict`: classes of supervision if that package is installed, else those here with their fields.

They are `Detections` and, for models with keypoints, `KeyPoints`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.keypoints import pixel_covariance
from rtdetr_tool.ops.masks import pixels_of
from rtdetr_tool.ops.structures import Detections, InstanceKeypoints, InstanceMasks

# (xyxy, mask, confidence, class_id, tracker_id, data) of one object.
Row = tuple[NDArray[np.float32], NDArray[np.bool_] | None, np.float32, np.int64, None, dict[str, Any]]


@dataclass
class PlainDetections:
    """The detections in an image, best first, with the fields of `supervision.Detections`."""

    xyxy: NDArray[np.float32]  # [N, 4] pixels of the original image
    confidence: NDArray[np.float32]  # [N] 0..1
    class_id: NDArray[np.int64]  # [N] class index
    mask: NDArray[np.bool_] | None = None  # [N, H, W] at the size of the original image
    tracker_id: None = None
    data: dict[str, Any] = field(default_factory=dict)  # [N] each
    metadata: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.xyxy)

    def __iter__(self) -> Iterator[Row]:
        """The objects one by one, in the order of supervision."""
        for index in range(len(self)):
            data = {name: values[index] for name, values in self.data.items()}
            mask = None if self.mask is None else self.mask[index]
            yield self.xyxy[index], mask, self.confidence[index], self.class_id[index], None, data

    def __getitem__(self, index: Any) -> Any:
        """A column of `data` by name, else the objects selected by `index`."""
        if isinstance(index, str):
            return self.data.get(index)
        index = [index] if isinstance(index, (int, np.integer)) else index
        return PlainDetections(
            self.xyxy[index], self.confidence[index], self.class_id[index],
            mask=None if self.mask is None else self.mask[index],
            data={name: values[index] for name, values in self.data.items()}, metadata=self.metadata,
        )  # fmt: skip


@dataclass
class PlainKeyPoints:
    """The keypoints of the objects in an image, best object first, with the fields of `supervision.KeyPoints`."""

    xy: NDArray[np.float32]  # [N, P, 2] pixels of the original image; 0 for keypoints that the class does not have
    keypoint_confidence: NDArray[np.float32]  # [N, P] probability that the keypoint would be annotated, 0..1
    detection_confidence: NDArray[np.float32]  # [N] 0..1
    class_id: NDArray[np.int64]  # [N] class index
    visible: NDArray[np.bool_]  # [N, P]
    data: dict[str, Any] = field(default_factory=dict)  # [N] each

    def __len__(self) -> int:
        return len(self.xy)

    def __getitem__(self, index: Any) -> Any:
        """A column of `data` by name, else the objects selected by `index`."""
        if isinstance(index, str):
            return self.data.get(index)
        index = [index] if isinstance(index, (int, np.integer)) else index
        columns = {name: np.asarray(values)[index] for name, values in self.data.items()}
        return PlainKeyPoints(
            self.xy[index], self.keypoint_confidence[index], self.detection_confidence[index], self.class_id[index],
            self.visible[index], columns,
        )  # fmt: skip


def result_of(
    detections: Detections, class_map: ClassMap | None, size: tuple[int, int], source: NDArray[np.uint8] | None
) -> Any:
    """The detections of one image as returned to the caller.

    `data` has `class_name` and `source_shape` (height, width) of each object, `metadata` the image as `source_image`
    if it is given. Predictions of an index without a class are dropped.

    With keypoints, `data` also has `xyxy`, `covariance` [N, P, 2, 2] in square pixels, and the image of each object.
    """
    if class_map is not None:
        keep = [class_map.category_id_of(label) is not None for label in detections.labels.tolist()]
        detections = detections.select(keep)
    labels = detections.labels.numpy().astype(np.int64)
    names = [class_map.name_of(label) if class_map else f"class_{label}" for label in labels.tolist()]
    data = {
        "class_name": np.array(names, dtype=str),
        "source_shape": np.tile(np.array(size, dtype=np.int64), (len(labels), 1)),
    }
    boxes = detections.boxes.numpy().astype(np.float32).reshape(-1, 4)
    if detections.keypoints is not None:
        images = {} if source is None else {"source_image": [source] * len(labels)}
        return _key_points(detections, detections.keypoints, {**data, "xyxy": boxes, **images})
    return detections_class()(
        xyxy=boxes,
        confidence=detections.scores.numpy().astype(np.float32),
        class_id=labels,
        mask=None if detections.masks is None else _pixels(detections.masks),
        data=data,
        metadata={} if source is None else {"source_image": source},
    )


def _key_points(detections: Detections, keypoints: InstanceKeypoints, data: dict[str, Any]) -> Any:
    points = keypoints.points.numpy().astype(np.float32)
    precision = {
        "keypoint_precision_cholesky": keypoints.precision.numpy().astype(np.float32),
        "covariance": pixel_covariance(keypoints).numpy(),
    }
    return key_points_class()(
        xy=points[..., :2],
        keypoint_confidence=points[..., 2],
        detection_confidence=detections.scores.numpy().astype(np.float32),
        class_id=detections.labels.numpy().astype(np.int64),
        visible=points[..., 2] > 0,
        data={**data, **precision},
    )


def _pixels(masks: InstanceMasks) -> NDArray[np.bool_]:
    parts = [part.numpy() for part in pixels_of(masks)]
    return np.concatenate([np.zeros((0, *masks.size), dtype=np.bool_), *parts])


def detections_class() -> type[Any]:
    """`supervision.Detections`, or `PlainDetections` if supervision is not installed."""
    return _class_of_supervision("Detections") or PlainDetections


def key_points_class() -> type[Any]:
    """`supervision.KeyPoints`, or `PlainKeyPoints` if supervision is not installed."""
    return _class_of_supervision("KeyPoints") or PlainKeyPoints


@cache
def _class_of_supervision(name: str) -> type[Any] | None:
    try:
        import supervision
    except ImportError:
        return None
    kind: type[Any] = getattr(supervision, name)
    return kind
