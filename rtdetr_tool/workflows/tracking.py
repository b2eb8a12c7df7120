"""Follow objects over the frames of a video: every detection of the same object gets the same number."""

from __future__ import annotations

import importlib.util
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from rtdetr_tool.errors import UserError
from rtdetr_tool.ops.structures import Detections

LOWEST_SCORE = 0.1  # of detections that keep a track alive, as in the ByteTrack paper
_INSTALL = 'inference.tracker: bytetrack requires trackers: pip install "rtdetr-tool[tracking]"'


class Tracker(Protocol):
    """Assigns the detections of consecutive frames to tracks."""

    def update(self, detections: Detections, time: float) -> list[int | None]:
        """The number of each detection's track; None for one that has none (yet)."""
        ...


def require_tracker(name: str) -> None:
    """UserError if the package of a tracker is not installed."""
    if name != "none" and importlib.util.find_spec("trackers") is None:
        raise UserError(_INSTALL)


def build_tracker(name: str, threshold: float, fps: Fraction | None) -> Tracker | None:
    """A tracker for one video; None for `none`.

    Args:
        threshold: the smallest score of a detection that starts a track. Weaker ones, from `LOWEST_SCORE`, only
            continue tracks.
    """
    return None if name == "none" else ByteTrack(threshold, float(fps or 25))


class ByteTrack:
    """ByteTrack (arXiv:2110.06864) of the `trackers` library, with the times of the frames."""

    def __init__(self, threshold: float, fps: float) -> None:
        from trackers import ByteTrackTracker

        self._tracker = ByteTrackTracker(
            frame_rate=fps, track_activation_threshold=threshold, high_conf_det_threshold=threshold
        )

    def update(self, detections: Detections, time: float) -> list[int | None]:
        import supervision

        converted = supervision.Detections(
            xyxy=detections.boxes.numpy().astype(np.float32).reshape(-1, 4),
            confidence=detections.scores.numpy().astype(np.float32),
            class_id=detections.labels.numpy(),
            data={"index": np.arange(len(detections))},
        )
        tracked: Any = self._tracker.update(converted, timestamp=time)
        numbers: list[int | None] = [None] * len(detections)
        if len(tracked):
            for index, number in zip(tracked.data["index"].tolist(), tracked.tracker_id.tolist(), strict=True):
                numbers[index] = number if number >= 0 else None
        return numbers
